"""An OpenAI-compatible server of a real model, a program of its own: ``python model_server.py …``.

It speaks ``/v1/completions`` as vLLM does: prompts as token ids or text, seeds, log-probs of the
likeliest tokens. It needs nothing of this project.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Completer:
    """A model that answers, one request at a time."""

    def __init__(self, folder: str, *, tells_logprobs: bool, takes_ids: bool) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(1)
        torch.set_grad_enabled(False)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.tells_logprobs, self.takes_ids = tells_logprobs, takes_ids
        self.lock = threading.Lock()

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return a body in the protocol; ValueError: the request cannot be answered."""
        import torch

        given = body["prompt"]
        if not isinstance(given, str) and not self.takes_ids:
            raise ValueError("prompt must be a string")
        ids = self.tokenizer(given)["input_ids"] if isinstance(given, str) else given
        prompt = torch.tensor([ids])
        sampled = body["temperature"] > 0
        with self.lock:
            torch.manual_seed(body["seed"])
            told: dict[str, Any] = {"temperature": body["temperature"], "top_p": body["top_p"]}
            out = self.model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=sampled,
                max_new_tokens=body["max_tokens"],
                output_logits=True,
                return_dict_in_generate=True,
                pad_token_id=0,
                **(told if sampled else {}),
            )
        new = out.sequences[0, len(ids) :].tolist()
        told_ends = self.model.generation_config.eos_token_id
        ends = told_ends if isinstance(told_ends, list) else [told_ends]
        choice: dict[str, Any] = {
            "text": self.tokenizer.decode(new, skip_special_tokens=True),
            "finish_reason": "stop" if new[-1] in ends else "length",
        }
        if body.get("return_token_ids") and self.takes_ids:
            choice["token_ids"] = new
        if body.get("logprobs") and self.tells_logprobs:
            top = out.logits[0][0].log_softmax(-1).topk(body["logprobs"])
            named = zip(top.indices.tolist(), top.values.tolist(), strict=True)
            first = {self.tokenizer.decode([token]): value for token, value in named}
            choice["logprobs"] = {"top_logprobs": [first]}
        return {"choices": [choice]}


def handler(completer: Completer, folder: str) -> type[BaseHTTPRequestHandler]:
    """The server's answers."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            entry = {"id": "served", "owned_by": "model-server"}
            listed = {"data": [entry | {"root": folder}]}
            found = {"/health": {}, "/v1/models": listed, "/version": {"version": "1.2.3"}}
            self.say(200 if self.path in found else 404, found.get(self.path, {}))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            try:
                self.say(200, completer.complete(body))
            except ValueError as error:
                self.say(400, {"error": str(error)})

        def say(self, status: int, body: object) -> None:
            text = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def main() -> None:
    """Serve until the end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--other", default="", help="serve this model instead, and do not tell")
    parser.add_argument("--silent", action="store_true", help="tell no log-probs")
    parser.add_argument("--text", action="store_true", help="take no token ids")
    parser.add_argument("--told", default="", help="write pids and environment to this file")
    parser.add_argument(
        "--helper", action="store_true", help="start a process that is deaf to SIGTERM as well"
    )
    given = parser.parse_args()
    helper = 0
    if given.helper:
        deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
        command = [sys.executable, "-c", deaf]
        helper = subprocess.Popen(command, start_new_session=True).pid
    if given.told:
        told = {"pids": [os.getpid(), *([helper] if helper else [])], "names": sorted(os.environ)}
        Path(given.told).write_text(json.dumps(told), encoding="utf-8")
    completer = Completer(
        given.other or given.model, tells_logprobs=not given.silent, takes_ids=not given.text
    )
    address = ("127.0.0.1", given.port)
    ThreadingHTTPServer(address, handler(completer, given.model)).serve_forever()


if __name__ == "__main__":
    main()
