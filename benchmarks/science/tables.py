"""Say in Markdown what came of a campaign: what its parts show, what they do not, what is missing.

Every number comes from the files of parts alone, so that the tables can be made again by anybody.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.science.design import Campaign
from benchmarks.science.parts import Part, PartFiles, reserve_values, rows_of
from sdpo.report.tables import UNKNOWN, interval, number, percent
from sdpo.stats.bootstrap import Floats, intervals
from sdpo.stats.contamination import CONTAMINATION_NATS
from sdpo.stats.differences import RESAMPLES
from sdpo.stats.gamma import RESERVE
from sdpo.study.comparison import Comparison, compare
from sdpo.study.measures import ACCURACY, GAMMA
from sdpo.system.words import counted

SEED = 42
"""All intervals of the tables are drawn by this seed."""

Kept = Mapping[str, tuple[Part, pa.Table]]
"""Parts by the name of their trial."""


def page(campaign: Campaign, results: Path) -> str:
    """Return the tables of all parts that are there, as Markdown."""
    kept = read_parts(campaign, results)
    blocks = [
        _head(campaign, kept),
        *([] if not kept else [reserve_table(kept), *_comparisons(kept)]),
        *([] if not kept else [_ahead(kept), _first_losses(kept), _contamination(kept)]),
        *([] if not kept else [_secondary(kept)]),
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def read_parts(campaign: Campaign, results: Path) -> dict[str, tuple[Part, pa.Table]]:
    """Return the parts that are there, in the order of the design."""
    files = PartFiles(results)
    return {name: files.read(name) for name in trial_names(campaign) if files.is_there(name)}


def trial_names(campaign: Campaign) -> list[str]:
    """Return the names of all trials of a campaign, in the order in which they run."""
    design = campaign.design
    first = [*design.several, *design.single]
    others = range(design.first_seed + 1, design.first_seed + design.seeds)
    return [*first, *(f"{arm}.seed-{seed}" for seed in others for arm in design.several)]


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return [f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines]


def power_table(campaign: Campaign) -> list[str]:
    """Return what the reserve could show, as it was said before anything ran."""
    design = campaign.design
    rows = []
    for each in campaign.smallest:
        supposed, effect = float(each["supposed"]), float(each["effect"])
        if each["measure"] == "accuracy":
            row = ("ranking accuracy", f"{supposed:.0%} of pairs are ranked otherwise")
            rows.append((*row, ACCURACY.size(effect)))
        else:
            row = ("mean γ", f"differences of pairs spread by {supposed:g} nats")
            rows.append((*row, GAMMA.size(effect)))
    level = f"5% shared among {design.tests} tests" if design.tests else "5%, with a second arm"
    return [
        f"Smallest difference of two arms that {design.reserved} reserved pairs show in 80% of all "
        f"tries, varying over pairs alone, at {level} (written before anything ran):",
        "",
        *markdown(("in", "if", "is"), rows),
    ]


def _head(campaign: Campaign, kept: Kept) -> list[str]:
    design = campaign.design
    missing = [name for name in trial_names(campaign) if name not in kept]
    how = f"LoRA of rank {design.lora_r}" if design.lora_r else "all weights"
    seeds = f"{counted(design.seeds, 'seed')} for {', '.join(design.several)}"
    if design.single:
        seeds += f", one for {', '.join(design.single)}"
    return [
        f"Three steps of {design.pairs} pairs ({', '.join(campaign.sources)}), {how}, β "
        f"{design.beta:g}, learning rate {design.learning_rate:g}, batches of {design.batch_size}; "
        f"{design.reserve} reserved pairs of each source; pairs of at most {design.characters} "
        f"characters. {seeds}.",
        *design.notes,
        f"{len(kept)} of {len(kept) + len(missing)} parts are there"
        + (f"; missing: {', '.join(missing)}." if missing else "."),
        "",
        *power_table(campaign),
    ]


def _arms(kept: Kept) -> dict[str, list[tuple[Part, pa.Table]]]:
    arms: dict[str, list[tuple[Part, pa.Table]]] = {}
    for part, table in kept.values():
        arms.setdefault(part.result.arm, []).append((part, table))
    return arms


def reserve_table(kept: Kept) -> list[str]:
    """Return what S and every arm came to on the reserve, means over the seeds that are there."""
    rows = []
    for arm, several in _arms(kept).items():
        values = [reserve_values(table) for _, table in several]
        prompts, start = values[0].prompt_key, values[0].start
        if not rows:
            rows.append(("S", UNKNOWN, *_accuracy_and_gamma(start[None], prompts), UNKNOWN))
        gamma = np.stack([each.gamma for each in values])
        change = _mean((gamma - start).mean(axis=0), prompts)
        rows.append((arm, str(len(several)), *_accuracy_and_gamma(gamma, prompts), change))
    columns = ("model", "seeds", "ranking accuracy", "mean γ, nats", "change of γ from S")
    return ["**On the reserve** (95% intervals over prompts)", "", *markdown(columns, rows)]


def _accuracy_and_gamma(gamma: Floats, prompts: np.ndarray) -> tuple[str, str]:
    """Return the share of pairs with gamma > 0 and mean gamma of ``gamma`` ``[seeds, pairs]``."""
    right = (gamma > 0).mean(axis=0)
    return _mean(right, prompts, is_share=True), _mean(gamma.mean(axis=0), prompts)


def _mean(values: Floats, prompts: np.ndarray, *, is_share: bool = False) -> str:
    ((low, high),) = intervals(values[:, None], prompts, resamples=RESAMPLES, seed=SEED)
    if is_share:
        bounds = interval(low, high, digits=1, scale=100)
        return f"{percent(float(values.mean()))} {bounds}"
    return f"{number(float(values.mean()))} {interval(low, high)}"


def comparison_of(kept: Kept, trials: Sequence[str]) -> Comparison | None:
    """Return the comparison of these trials; None where fewer than two arms are among them."""
    found = [kept[name] for name in trials]
    if len({part.result.arm for part, _ in found}) < 2:
        return None
    values = {part.result.trial: reserve_values(table) for part, table in found}
    return compare("campaign", [part.result for part, _ in found], values, seed=SEED)


def _comparisons(kept: Kept) -> Iterator[list[str]]:
    """Yield the differences of all arms by the first seed, and those of several seeds."""
    by_arm = _arms(kept)
    first = [several[0][0].result.trial for several in by_arm.values()]
    most = len(by_arm.get("sdpo", []))
    # Arms are compared with as many seeds as the first one has, so that seeds are paired.
    more = [
        part.result.trial
        for several in by_arm.values()
        if len(several) == most
        for part, _ in several
    ]
    for title, trials in (("first seed", first), (f"{most} seeds", more)):
        if title != "first seed" and most < 2:
            continue
        if found := comparison_of(kept, trials):
            yield _differences(found, title)


def _differences(found: Comparison, title: str) -> list[str]:
    rows = [
        (
            contrast.arm,
            contrast.title,
            contrast.shown(contrast.found),
            UNKNOWN if contrast.corrected is None else f"{contrast.corrected:.3f}",
            UNKNOWN if contrast.smallest is None else contrast.size(contrast.smallest),
            ("higher" if contrast.found.mean > 0 else "lower") if contrast.is_shown else "no",
        )
        for contrast in found.contrasts
    ]
    columns = ("arm", "in", "difference", "corrected p", "could be shown", "shown")
    return [
        f"**Differences from {found.arms[0].arm}, {title}** ({found.pairs} pairs of "
        f"{found.prompts} prompts)",
        "",
        *markdown(columns, rows),
        "",
        "[a, b]: 95% interval of Student's t over prompts, and of several seeds one over these; a "
        "difference is shown where both leave out 0 and p is below 5%. "
        f"p is corrected by Holm for {found.tests} tests{_untested(found)}. Could be shown: the "
        "smallest difference "
        f"that would be shown in 80% of all tries, varying {_varying(found)}; a smaller one may "
        "still be there.",
    ]


def _untested(found: Comparison) -> str:
    return (
        ", those that something varies in"
        if any(contrast.found.p is None for contrast in found.contrasts)
        else ""
    )


def _varying(found: Comparison) -> str:
    return "over pairs and over seeds as here" if found.seeds > 1 else "over pairs as here"


def _ahead(kept: Kept) -> list[str]:
    """Return gamma on each D_t under S and under the model that is its reference (Figure 2)."""
    rows = []
    for name, (part, table) in kept.items():
        for step in part.result.steps[1:]:
            probe = rows_of(table, f"D_{step.step}")
            prompts = np.asarray(probe["prompt_key"].to_pylist(), dtype=np.str_)
            start, reference = (probe[f"gamma_{model}"].to_numpy() for model in (0, step.step - 1))
            if not len(start):
                continue
            rows.append(
                (
                    name,
                    f"D_{step.step} ({len(start)})",
                    f"M_{step.step - 1}",
                    f"{number(float(start.mean()))}, {percent(float((start > 0).mean()))}",
                    f"{number(float(reference.mean()))}, {percent(float((reference > 0).mean()))}",
                    _mean(reference - start, prompts),
                    percent(float((reference > start).mean())),
                )
            )
    if not rows:
        return []
    columns = (
        *("trial", "on (pairs)", "model before", "γ and accuracy under S", "under that model"),
        *("change of γ", "γ rose"),
    )
    return [
        "**Before a step trains: γ of its own pairs under S and under the model before it** (the "
        "paper's Figure 2)",
        "",
        *markdown(columns, rows),
    ]


def _first_losses(kept: Kept) -> list[str]:
    rows = [
        (
            name,
            *(
                f"{losses[0]:.3f}, then {np.mean(losses[1:4]):.3f}, last {losses[-1]:.3f}"
                for losses in (part.losses.get(s.step, []) for s in part.result.steps)
                if len(losses) > 1
            ),
        )
        for name, (part, _) in kept.items()
    ]
    most = max(len(row) for row in rows)
    columns = ("trial", *(f"step {step}" for step in range(1, most)))
    padded = [(*row, *[UNKNOWN] * (most - len(row))) for row in rows]
    return [
        "**Losses: of the first update, the mean of the three after it, the last** (the paper's "
        "Figure 3; log 2 = 0.693 where target and reference are one model)",
        "",
        *markdown(columns, padded),
    ]


def _contamination(kept: Kept) -> list[str]:
    """Return the warnings of chains, and what S alone tells of the sources."""
    rows = [
        (
            name,
            f"M_{gap.step - 1} on D_{gap.step}",
            f"{number(gap.gap, signed=True)} {interval(gap.low, gap.high)}",
            "yes" if gap.warning else "no",
        )
        for name, (part, _) in kept.items()
        for gap in part.gaps
    ]
    return [
        "**Contamination: how much more the model before a step moved from S on the step's pairs "
        "than on the reserve of their source**",
        "",
        *(markdown(("trial", "model, pairs", "gap, nats", "warning"), rows) if rows else []),
        "",
        f"A warning needs an interval above 0 and a gap above {CONTAMINATION_NATS:g} nats, and "
        "above what the reserve itself moved.",
        "",
        *seen_by_start(next(iter(kept.values()))[1]),
    ]


def seen_by_start(table: pa.Table) -> list[str]:
    """Return what S prefers on each source, trained on or reserved alike: S has met none here."""
    sources = table["source"].to_pylist()
    names = np.asarray(table["probe"].to_pylist(), dtype=np.str_)
    per_token = table["chosen_logps"].to_numpy() / table["chosen_tokens"].to_numpy()
    other = table["rejected_logps"].to_numpy() / table["rejected_tokens"].to_numpy()
    gamma = table["gamma_0"].to_numpy()
    prompts = np.asarray(table["prompt_key"].to_pylist(), dtype=np.str_)
    is_own = np.char.startswith(names, "D_") | np.char.startswith(names, RESERVE)
    rows = []
    for source in dict.fromkeys(sources):
        mine = np.asarray([each == source for each in sources]) & is_own
        rows.append(
            (
                source,
                str(int(mine.sum())),
                _mean((gamma[mine] > 0).astype(np.float64), prompts[mine], is_share=True),
                _mean((per_token > other)[mine].astype(np.float64), prompts[mine], is_share=True),
                _mean(per_token[mine], prompts[mine]),
                _mean(other[mine], prompts[mine]),
            )
        )
    columns = (
        *("source", "pairs", "S ranks right, sums", "per token"),
        *("chosen, nats a token", "rejected"),
    )
    return ["What S itself prefers, before any step:", "", *markdown(columns, rows)]


def _secondary(kept: Kept) -> list[str]:
    suites = _suites(kept)
    wins = [
        (
            name,
            f"M_{win.model} over {'S' if not win.other else f'M_{win.other}'}",
            win.judge,
            str(win.prompts),
            f"{percent(win.rate)} {interval(win.low, win.high, digits=1, scale=100)}",
        )
        for name, (part, _) in kept.items()
        for win in part.wins
    ]
    if not suites and not wins:
        return ["In these parts no suite was asked, and no answers were judged."]
    blocks: list[str] = []
    if suites:
        columns = ("trial", "task, metric", "documents", "model", "score", "paired change from S")
        blocks += ["**Suites**, without examples", "", *markdown(columns, suites)]
    if wins:
        columns = ("trial", "answers of", "rule", "prompts", "won, ties as half")
        blocks += [*([""] if blocks else []), "**Win rates**", "", *markdown(columns, wins)]
    return blocks


def _suites(kept: Kept) -> list[tuple[str, ...]]:
    """Return a row for every model on every task; that of S once, which all trials have."""
    rows: dict[tuple[str, str, int], tuple[str, ...]] = {}
    for name, (part, _) in kept.items():
        for suite in part.suites:
            said = f"{suite.name}, {suite.metric}"
            change = UNKNOWN
            if suite.change is not None:
                bounds = interval(suite.low, suite.high, digits=3)
                change = f"{number(suite.change, digits=3, signed=True)} {bounds}"
            trial, model = (name, f"M_{suite.model}") if suite.model else ("", "S")
            row = (trial, said, str(suite.documents), model, number(suite.value, digits=3), change)
            rows.setdefault((trial, said, suite.model), row)
    return list(rows.values())
