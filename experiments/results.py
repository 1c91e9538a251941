"""The tables of RESULTS.md, from the rows in experiments/rows; nothing is trained.

    python experiments/results.py            # writes RESULTS.md's tables again, between its two marks
    python experiments/results.py --print    # only shows them
    python experiments/results.py --keep runs/muon quick-muon    # a finished study's rows, small, to experiments/rows

A study that is to be on the page needs its folder there, and its name in `STUDIES`.
"""

import dataclasses
import json
import statistics
import sys
from pathlib import Path

import noise_table

from eqx_slm.files import json_ready, sealed, unsealed, write_text_atomic
from eqx_slm.study import laws, load_results
from eqx_slm.study.blocks import Heading, Paragraph, Table, markdown
from eqx_slm.study.folder import read_rows
from eqx_slm.study.statistics import paired_interval

HERE = Path(__file__).parent
PAGE, BEGIN, END = HERE.parent / "RESULTS.md", "<!-- tables -->", "<!-- /tables -->"
STUDIES = (
    *("embedding-stdlib", "embedding-wikitext-2", "taper-attention", "taper-gated", "scaling-1200", "quick-ptb"),
    *("quick-hope", "quick-hope-again", "quick-titans", "quick-profiles", "quick-positions"),
    *(OPTIMIZERS := ("quick-adamw", "quick-beta2", "quick-muon")),
    "quick-winner-wikitext-2",
    "scaling-wikitext-2-rates",
)
# Lengths of one series, in steps of 256 tokens; rows without losses of every sequence.
LENGTHS = tuple(f"scaling-wikitext-2-{steps}" for steps in (960, 1920, 3840, 7680))

# The same tokens in all, as so many passes over a part of the text.
PASSES = {count: f"scaling-wikitext-2-passes-{count}" for count in (1, 2, 4, 8)}


def differences(results):
    """A row an arm: size, cost, loss, paired difference with both intervals, verdict."""
    rows = []
    compared = {each.arm: each for each in results.comparisons}
    for name, arm in results.arms.items():
        facts, found = arm.facts, compared.get(name)
        flops = (facts.flops_per_token or {}).get("total")
        row = [name, f"{facts.parameters['total']:,}", "" if flops is None else f"{flops / 1e6:.2f}M"]
        row.append(f"{arm.mean('final_nll'):.4f}")
        if found is None:
            rows.append([*row, "", "", "reference"])
            continue
        wide = f"{found.corrected_low:+.4f} to {found.corrected_high:+.4f}"
        rows.append([*row, f"{found.mean:+.4f} ({found.low:+.4f} to {found.high:+.4f})", wide, found.verdict])
    header = ["arm", "parameters", "FLOPs a token", "loss", "difference (95%)", "Holm-corrected", "verdict"]
    return Table(header, rows, left=1)


def rare(results, of):
    """Differences to the first arm by how frequent the target or the input is: tenths of the training tokens."""
    mean = {}
    for name, arm in results.arms.items():
        parts = [[loss for loss, _ in run.by_frequency[f"{of} by mass"][:10]] for run in arm.runs]
        mean[name] = [sum(each) / len(each) for each in zip(*parts, strict=True)]
    first = mean.pop(results.reference)
    picked = (0, 4, 7, 9)
    rows = [[name, *(f"{own[i] - first[i]:+.3f}" for i in picked)] for name, own in mean.items()]
    return Table(["arm", *(f"tenth {i + 1}" for i in picked)], rows, left=1)


def by_size(series):
    """Mean final losses: a row an arm and size, a column a length."""
    lengths = [f"{results.settings['tokens']:,}" for results in series.values()]
    rows = []
    for name, arm in next(iter(series.values())).arms.items():
        means = [results.arms[name].mean("final_nll") for results in series.values()]
        rows.append([name, f"{arm.facts.parameters['total']:,}", *(f"{mean:.3f}" for mean in means)])
    return Table(["arm", "parameters", *lengths], rows, left=1)


def scaling():
    """The series of lengths: losses, the joint fits, and what each arm is worth in dense's parameters and tokens."""
    series = {name: load_results(HERE / "rows" / name) for name in LENGTHS}
    first = next(iter(series.values()))
    yield Heading("scaling-wikitext-2", 3)
    seeds = ", ".join(map(str, first.settings["seeds"]))
    yield Paragraph(f"Mean losses of seeds {seeds} after so many tokens, {first.machine['device']}, one core.")
    yield by_size(series)
    yield from (block for block in laws(("shared", "free"), ("ND",))(series) if not isinstance(block, Heading))


def passes():
    """The same tokens as more passes over less text: each arm against dense of its width, and what changes."""
    series = {count: load_results(HERE / "rows" / name) for count, name in PASSES.items()}
    first, *_, last = (
        {each.arm: each for each in results.comparisons} for results in (series[min(PASSES)], series[max(PASSES)])
    )
    yield Heading("scaling-wikitext-2-passes", 3)
    settings = series[1].settings
    yield Paragraph(
        f"{settings['tokens']:,} tokens a run, seeds {', '.join(map(str, settings['seeds']))}, "
        f"{series[1].machine['device']}, one core; loss, and difference to dense of the same width, after so many "
        "passes. Change: of the difference, from one pass to eight, over paired seeds (95%)."
    )
    rows = []
    for name, arm in series[1].arms.items():
        cells = []
        for results in series.values():
            found = next((each for each in results.comparisons if each.arm == name), None)
            cells.append(f"{results.arms[name].mean('final_nll'):.3f}" + (f" ({found.mean:+.3f})" if found else ""))
        change = ""
        if name in first:
            pairs = zip(last[name].differences, first[name].differences, strict=True)
            its = paired_interval([b - a for b, a in pairs if a is not None and b is not None])
            change = f"{its.mean:+.3f} ({its.low:+.3f} to {its.high:+.3f})"
        rows.append([name, f"{arm.facts.parameters['total']:,}", *cells, change])
    yield Table(["arm", "parameters", *(f"{count} passes" for count in PASSES), "change"], rows, left=1)


def noise():
    """How far losses and paired differences spread over seeds: a row a corpus, size, length and schedule."""
    yield Heading("noise", 3)
    yield Paragraph(
        "Standard deviations over seeds, nats a token; of several comparisons the median. Paired: same tokens, and "
        "initial values where arms share leaves; null: the reference from other initial values. Every comparison is a "
        "line of experiments/noise.csv."
    )
    groups = {}
    for row in noise_table.table():
        where = (row["corpus"], row["parameters"], row["tokens"], row["schedule"], row["optimizer"])
        groups.setdefault(where, []).append(row)
    rows = []
    for (corpus, parameters, tokens, schedule, optimizer), found in sorted(groups.items()):
        losses = [row for row in found if row["metric"] == "loss"]
        kinds = {"loss": [row["sd_reference"] for row in losses]}
        kinds |= {"paired": [row["sd_difference"] for row in losses if row["arm"] != "null"]}
        kinds |= {"null": [row["sd_difference"] for row in losses if row["arm"] == "null"]}
        for part, metric in (("rarest", "loss of the rarest tenth"), ("mean", "loss of the mean of the last weights")):
            kinds[part] = [row["sd_difference"] for row in found if row["metric"] == metric and row["arm"] != "null"]
        sds = [f"{statistics.median(map(float, own)):.4f}" if own else "" for own in kinds.values()]
        rows.append([corpus, f"{parameters:,}", f"{tokens:,}", f"{schedule}, {optimizer}", str(len(losses)), *sds])
    columns = ["corpus", "parameters", "tokens", "schedule, optimizer", "comparisons", "loss", "paired difference"]
    columns += ["null difference", "paired, rarest tenth", "paired, mean of weights"]
    yield Table(columns, rows, left=1)


def tables():
    """All of them, as Markdown."""
    blocks = []
    for name in STUDIES:
        results = load_results(HERE / "rows" / name)
        seeds, tokens = results.settings["seeds"], results.settings["tokens"]
        blocks.append(Heading(name, 3))
        said = f"{tokens:,} tokens a run, seeds {', '.join(map(str, seeds))}, {results.machine['device']}, "
        blocks.append(Paragraph(f"{said}jax {results.machine['jax']}; nats a token of validation text."))
        blocks.append(differences(results))
        if name.startswith(("embedding", "quick-ptb", *OPTIMIZERS)):
            for of in ("target", "input") if name in OPTIMIZERS else ("target",):
                blocks.append(
                    Paragraph(f"Differences to dense by tenths of the training tokens, {of}s, most frequent first:")
                )
                blocks.append(rare(results, of))
    blocks += [*scaling(), *passes(), *noise()]
    return markdown(blocks).strip()


def page(text):
    """The page with its tables written anew."""
    head, _, rest = text.partition(BEGIN)
    return f"{head}{BEGIN}\n\n{tables()}\n\n{END}{rest.partition(END)[2]}"


def keep(folder, name):
    """Copies the rows and the result of a finished study, without what makes them large: losses of every sequence,
    the curves and losses by frequency at rates that were not the best, and in result.json all that the rows have."""
    folder, kept = Path(folder), HERE / "rows" / name
    own = {name: arm.learning_rate for name, arm in load_results(folder).arms.items()}

    def short(row):
        best = row.learning_rate == own[row.arm]
        rest = {} if best else {"evals": row.evals[-1:], "by_frequency": {}}
        return dataclasses.replace(row, sequences=(), sample="", **rest)

    kept.mkdir(parents=True)
    write_text_atomic(kept / "runs.jsonl", "".join(short(row).line for row in read_rows(folder / "runs.jsonl")))
    data = unsealed(json.loads((folder / "result.json").read_text("utf-8")), folder)
    for arm in data["arms"].values():
        for run in (*arm["runs"], *arm["all_runs"]):
            run |= {"evals": run["evals"][-1:], "by_frequency": {}, "sample": ""}
    write_text_atomic(kept / "result.json", json.dumps(sealed(json_ready(data)), separators=(",", ":")))


if __name__ == "__main__":
    if "--keep" in sys.argv:
        keep(*sys.argv[sys.argv.index("--keep") + 1 :])
    elif "--print" in sys.argv:
        print(tables())
    else:
        write_text_atomic(PAGE, page(PAGE.read_text("utf-8")))
