"""Variables reach the chat template, and what it does not read is told."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sdpo.tokens.inputs import RowInputs
from sdpo.tokens.token_file import TokenFile
from sdpo.tokens.tokenise import tokenise_pairs

SWITCHED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if tone %}Tone: {{ tone }}\n{% endif %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)
TRIPLE = ("the dog?", "a fox", "a cat")
FOLDER = Path(__file__).resolve().parents[2] / "templates"


@pytest.fixture
def tokens(tmp_path, make_tokenizer, write_pairs, clock):
    def tokens(*inputs, template=SWITCHED, format="chat", without_column=False, **variables):
        tables = [pq.read_table(write_pairs([TRIPLE], format=format, inputs=i)) for i in inputs]
        table = pa.concat_tables(tables)
        if without_column:
            table = table.drop_columns(["template_inputs"])
        path, out = tmp_path / "pairs.parquet", tmp_path / "tokens.arrow"
        pq.write_table(table, path)
        tokenizer = make_tokenizer(template)
        tokenise_pairs(path, tokenizer, max_length=2048, clock=clock, out=out, variables=variables)
        file = TokenFile.open(out)
        prompts = [tokenizer.decode(file.prompt_ids(i).tolist()) for i in range(len(file))]
        return file, prompts, tokenizer

    return tokens


OFF, ON = '{"variables":{"enable_thinking":false}}', '{"variables":{"enable_thinking":true}}'


def test_every_row_is_printed_with_its_own_variables_as_transformers_prints_it(tokens):
    """Templates that open an empty thought for the answer move the boundary where the answer's
    own text has none: such rows are listed, so the answers are looked at with `tone` alone."""
    inputs = [None, '{"variables":{"tone":"dry"}}', '{"variables":{"tone":"kind"}}']
    template = SWITCHED.replace("Tone: ", "").replace("{% if tone", "{% if false and tone")
    template = "{% if tone %}Tone: {{ tone }}\n{% endif %}" + template
    file, prompts, tokenizer = tokens(*inputs, template=template)
    for tone, prompt in zip((None, "dry", "kind"), prompts, strict=True):
        expected = tokenizer.apply_chat_template(
            [{"role": "user", "content": TRIPLE[0]}],
            tokenize=False,
            add_generation_prompt=True,
            **({"tone": tone} if tone else {}),
        )
        assert prompt == expected
    assert (file.report.reasons, file.report.notes) == ({}, {})


def test_the_rows_variables_win_over_the_models(tokens):
    template = "{{ tone }}|" + SWITCHED.replace("{% if tone", "{% if false and tone")
    _, prompts, _ = tokens(None, '{"variables":{"tone":"kind"}}', template=template, tone="dry")
    assert [prompt.partition("|")[0] for prompt in prompts] == ["dry", "kind"]


def test_a_file_without_the_column_is_read_with_the_models_variables(tokens):
    template = "{{ tone }}|" + SWITCHED.replace("{% if tone", "{% if false and tone")
    _, prompts, _ = tokens(None, template=template, without_column=True, tone="dry")
    assert prompts[0].startswith("dry|")


def test_the_mode_of_smollm3_follows_a_variable_as_its_template_reads_it(tokens):
    template = (FOLDER / "smollm3.jinja").read_text()
    template = template.replace(
        '{%- set mode = "/no_think" if', '{%- set mode = "/no_think" if enable_thinking == false or'
    )
    file, prompts, _ = tokens(OFF, ON, template=template)
    assert file.report.notes == {}
    assert ["Reasoning Mode: /no_think" in prompt for prompt in prompts] == [True, False]
    assert prompts[0].endswith("<|im_start|>assistant\n<think>\n\n</think>\n")


def test_variables_that_the_template_does_not_read_are_told_by_name(tokens):
    file, _, _ = tokens(None, OFF, '{"variables":{"tone":"","extra":[]}}', template="chatml", x=1)
    assert file.report.notes == {"variables_unread": 3}
    assert file.report.examples["variables_unread"] == "row 0 of source `tests`, `x`"
    file, _, _ = tokens(None, OFF, template="chatml")
    assert file.report.notes == {"variables_unread": 1}
    assert "row 0 of source `tests`, `enable_thinking`" in file.report.warnings("pairs")[0]


def test_variables_of_text_are_read_by_nothing(tokens):
    file, _, _ = tokens(OFF, format="text")
    assert file.report.notes == {"variables_unread": 1}


@pytest.mark.parametrize("place", ["row", "model"])
def test_a_control_token_in_a_variable_makes_the_row_listed(tokens, place):
    tone = "dry<|im_end|>"
    row = f'{{"variables":{{"tone":"{tone}"}}}}' if place == "row" else None
    file, _, _ = tokens(row, **({} if place == "row" else {"tone": tone}))
    assert file.report.reasons == {"control_token": 1}
    assert "'<|im_end|>'" in file.report.examples["control_token"]


@pytest.mark.parametrize(
    ("template", "read"),
    [
        ("{{ x }}", True),
        ("{% if x is not defined %}{% set x = 1 %}{% endif %}{{ x }}", True),
        ("{% set x = 1 %}{{ x }}", False),
        ("{% generation %}{{ x }}{%- endgeneration -%}", True),
        ("{% for m in messages %}{% if x %}{% break %}{% endif %}{% endfor %}", True),
        ("{{ messages }} x", False),
        ("{% macro f(x) %}{{ x }}{% endmacro %}", False),
    ],
)
def test_what_a_template_reads_is_what_it_names_and_does_not_set_itself(template, read):
    text = '{"variables":{"x":3}}'
    assert RowInputs(template, {}).unread(text, is_chat=True) == ([] if read else ["x"])


TURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOL_TEMPLATES = {
    # Those of the models up to the first message, as they print tools.
    "qwen3": "{% if tools %}<|im_start|>system\n# Tools\n<tools>{% for tool in tools %}\n"
    "{{ tool | tojson }}{% endfor %}\n</tools><|im_end|>\n{% endif %}",
    "llama3.1": "{% if tools is not none %}<|im_start|>system\nEnvironment: ipython\n"
    "{% for t in tools %}{{ t | tojson(indent=4) }}\n\n{% endfor %}<|im_end|>\n{% endif %}",
    "gpt-oss": "{% if tools %}<|im_start|>system\nnamespace functions {\n{% for tool in tools %}"
    "{% set f = tool.function %}// {{ f.description }}\ntype {{ f.name }} = (_: {\n"
    "{%- for name, p in f.parameters.properties.items() %}\n// {{ p.description }}\n"
    "{{ name }}: {{ p.type }},{% endfor %}\n}) => any;\n{% endfor %}}<|im_end|>\n{% endif %}",
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather_of",
        "description": 'Say how it "is", \u00e4h.\nIn words.',
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Name of the city."}},
        },
    },
}


def given_tools(*tools):
    return json.dumps({"tools": list(tools)}, ensure_ascii=False)


@pytest.mark.parametrize("template", TOOL_TEMPLATES)
def test_tools_are_printed_as_transformers_prints_them(tokens, template):
    text = TOOL_TEMPLATES[template] + TURNS
    file, prompts, tokenizer = tokens(None, given_tools(WEATHER), template=text)
    assert (file.report.reasons, file.report.notes) == ({}, {})
    for tools, prompt in zip((None, [WEATHER]), prompts, strict=True):
        assert prompt == tokenizer.apply_chat_template(
            [{"role": "user", "content": TRIPLE[0]}],
            tools=tools,
            tokenize=False,
            add_generation_prompt=True,
        )
    assert "weather_of" in prompts[1]


@pytest.mark.parametrize(
    ("template", "dropped"),
    [
        ("", "weather_of"),
        ("{% for t in tools or [] %}{{ t.function.name }} {% endfor %}", "Say how it"),
        (
            "{% for t in tools or [] %}{{ t.function.name }} {{ t.function.description }}"
            "{% endfor %}",
            "city",
        ),
    ],
)
def test_a_template_that_drops_tools_or_a_part_of_them_makes_the_row_listed(
    tokens, template, dropped
):
    file, _, _ = tokens(None, given_tools(WEATHER), template=template + TURNS)
    assert file.report.reasons == {"template_drops_text": 1}
    told = file.report.examples["template_drops_text"]
    assert "the row's `tools`" in told
    assert dropped in told


def test_a_tools_name_in_a_message_is_not_taken_for_the_tool(tokens):
    file, _, _ = tokens(given_tools({"name": "dog"}), template=TURNS)
    assert file.report.reasons == {"template_drops_text": 1}


def test_a_control_token_in_a_tool_makes_the_row_listed(tokens):
    tool = {"name": "x_of", "description": "Ends in <|im_end|>."}
    file, _, _ = tokens(given_tools(tool), template=TOOL_TEMPLATES["qwen3"] + TURNS)
    assert file.report.reasons == {"control_token": 1}


def test_rows_with_tools_use_the_tokenizers_own_template_for_them(tokens):
    named = {"default": TURNS, "tool_use": TOOL_TEMPLATES["qwen3"] + TURNS}
    file, prompts, tokenizer = tokens(None, given_tools(WEATHER), template=named)
    assert file.report.reasons == {}
    assert ["<tools>" in prompt for prompt in prompts] == [False, True]
    [user] = [[{"role": "user", "content": TRIPLE[0]}]]
    options = {"tokenize": False, "add_generation_prompt": True}
    assert prompts[1] == tokenizer.apply_chat_template(user, tools=[WEATHER], **options)


OF_TOOLS = TOOL_TEMPLATES["qwen3"] + (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% if style %} ({{ style }}){% endif %}"
    "<|end|>!\n{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


def test_a_template_for_tools_closes_and_marks_turns_its_own_way(tokens):
    named = {"default": TURNS, "tool_use": OF_TOOLS}
    file, prompts, tokenizer = tokens(None, given_tools(WEATHER), template=named)
    assert (file.report.reasons, file.report.end_appended) == ({}, 0)
    sides = [tokenizer.decode(file.row(row).chosen_ids.tolist()) for row in (0, 1)]
    assert sides == ["a fox<|im_end|>", "a fox<|end|>"]
    assert prompts[1].endswith("[user]the dog?<|end|>!\n[assistant]")


def test_text_that_is_already_in_the_template_for_tools_is_known_in_rows_with_tools(
    tmp_path, make_tokenizer, write_pairs, clock
):
    marked = "[user]the dog?<|end|>!\n[assistant]"
    tokenizer = make_tokenizer({"default": TURNS, "tool_use": OF_TOOLS})
    reasons = []
    for inputs in (None, given_tools(WEATHER)):
        path = write_pairs([(marked, "a fox", "a cat")], inputs=inputs)
        out = tmp_path / "tokens.arrow"
        reasons.append(
            tokenise_pairs(path, tokenizer, max_length=2048, clock=clock, out=out).reasons
        )
    assert reasons == [{}, {"already_templated": 1}]


def test_a_variable_is_read_by_the_template_that_prints_the_row(tokens):
    named = {"default": TURNS, "tool_use": OF_TOOLS}
    own = {"variables": {"style": ""}}
    both = json.dumps({"tools": [WEATHER], **own})
    file, _, _ = tokens(json.dumps({"variables": {"style": "x"}}), both, template=named)
    assert file.report.notes == {"variables_unread": 1}
    assert file.report.examples["variables_unread"] == "row 0 of source `tests`, `style`"
    read = RowInputs(TURNS, {}, of_tools=OF_TOOLS)
    given = {"variables": {"style": "x"}}
    assert read.unread(json.dumps(given), is_chat=True) == ["style"]
    assert read.unread(json.dumps({"tools": [WEATHER], **given}), is_chat=True) == []


SWITCHED_END = TURNS.replace("<|im_end|>", "{{ '<|end|>!' if brief else '<|im_end|>' }}")


def test_a_variable_that_switches_the_end_of_turns_is_followed_row_by_row(tokens):
    inputs = [None, '{"variables":{"brief":true}}', '{"variables":{"brief":false}}']
    file, _, tokenizer = tokens(*inputs, template=SWITCHED_END)
    assert (file.report.reasons, file.report.end_appended) == ({}, 0)
    sides = [tokenizer.decode(file.row(row).chosen_ids.tolist()) for row in range(3)]
    assert sides == ["a fox<|im_end|>", "a fox<|end|>", "a fox<|im_end|>"]


def test_rows_with_hundreds_of_variables_of_their_own_are_all_printed(tokens):
    template = "{{ tone }}|" + TURNS
    inputs = [json.dumps({"variables": {"tone": f"tone {k}"}}) for k in range(150)]
    file, prompts, _ = tokens(*inputs, template=template)
    assert file.report.reasons == {}
    assert [prompt.partition("|")[0] for prompt in prompts] == [f"tone {k}" for k in range(150)]


def test_tools_that_a_template_refuses_make_their_row_listed_alone(tokens):
    refusing = "{% if tools %}{{ raise_exception('no tools') }}{% endif %}" + TURNS
    file, _, _ = tokens(None, given_tools(WEATHER), template=refusing)
    assert file.report.reasons == {"template_refuses": 1}
    assert "no tools" in file.report.examples["template_refuses"]
