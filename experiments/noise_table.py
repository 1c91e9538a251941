"""How noisy are losses and paired differences, by size, tokens, metric and schedule? From the rows in experiments/rows.

    python experiments/noise_table.py    # writes experiments/noise.csv again; nothing is trained

A row a comparison and metric: the standard deviation over seeds of the arm's loss, of its reference's, and of their
paired difference, in nats a token, and the correlation of the two losses. Metrics are the final validation loss, that
of the mean of the last steps' weights, and that of the tenth of the training tokens whose targets are the most frequent
or the rarest. `seeds_for_0.01` is how many make a 95% interval of the mean difference no wider than 0.01 to each side.
"""

import csv
import io
import statistics
import sys
from pathlib import Path

from eqx_slm.files import write_text_atomic
from eqx_slm.study import load_results
from eqx_slm.study.spread import seeds_for

HERE = Path(__file__).parent
FILE = HERE / "noise.csv"
KEYS = ("study", "corpus", "vocab_size", "parameters", "tokens", "schedule", "optimizer", "rate", "arm", "reference")
FIGURES = ("metric", "seeds", "mean_difference", "sd_difference", "sd_arm", "sd_reference", "correlation")


def metrics(run):
    """The figures of a run by metric."""
    found = {"loss": run.final_nll}
    if run.averaged_nll is not None:
        found["loss of the mean of the last weights"] = run.averaged_nll
    if tenths := run.by_frequency.get("target by mass"):
        found |= {"loss of the most frequent tenth": tenths[0][0], "loss of the rarest tenth": tenths[9][0]}
    return found


def rows_of(name, results):
    """A row, as a dictionary, of every comparison of a study and every metric."""
    optimizer = results.settings["optimizer"]
    for each in results.comparisons:
        arm, reference = (results.arms[which] for which in (each.arm, each.reference))
        pairs = {run.seed: (run, next(own for own in reference.runs if own.seed == run.seed)) for run in arm.runs}
        for metric in metrics(arm.runs[0]):
            both = [(metrics(a).get(metric), metrics(b).get(metric)) for a, b in pairs.values()]
            known = [(a, b) for a, b in both if a is not None and b is not None]
            if len(known) < max(3, len(pairs)):
                continue
            mine, theirs = [a for a, _ in known], [b for _, b in known]
            differences = [a - b for a, b in known]
            sds = [statistics.stdev(part) for part in (differences, mine, theirs)]
            yield {
                "study": name,
                "corpus": results.stream["corpus"],
                "vocab_size": results.stream["vocab_size"],
                "parameters": reference.facts.parameters["total"],
                "tokens": results.settings["tokens"],
                "schedule": optimizer["schedule"],
                "optimizer": f"{optimizer['kind']}, beta2 {optimizer['beta2']:g}",
                "rate": f"{arm.learning_rate:g}",
                "arm": each.arm,
                "reference": each.reference,
                "metric": metric,
                "seeds": len(pairs),
                "mean_difference": f"{statistics.fmean(differences):.5f}",
                **{key: f"{sd:.5f}" for key, sd in zip(FIGURES[3:6], sds, strict=True)},
                "correlation": f"{statistics.correlation(mine, theirs):.3f}",
                "seeds_for_0.01": seeds_for(0.01, sds[0]),
            }


def table():
    """All rows, in the order of the studies' names."""
    return [row for path in sorted((HERE / "rows").iterdir()) for row in rows_of(path.name, load_results(path))]


def text():
    """The table as the file has it."""
    out = io.StringIO()
    columns: list[str] = [*KEYS, *FIGURES, "seeds_for_0.01"]
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table())
    return out.getvalue()


if __name__ == "__main__":
    write_text_atomic(FILE, text())
    sys.exit(0)
