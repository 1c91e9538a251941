"""What a command shows, and that nothing about its terminal can end or spoil a run."""

import io
import os
import subprocess
import sys
import types

import pytest
from rich.console import Console

from eqx_slm.commandline import Patient, complain, patient_streams
from eqx_slm.study.progress import Event, Progress
from eqx_slm.train.loop import Evaluation
from eqx_slm.train.loop import Progress as Step

CHATTY = """
import sys
from eqx_slm.commandline import patient_streams, complain
with patient_streams():
    for i in range(20000):
        print(f"line {i} \\u2026 \\u27e6 \\U0001f642")
    complain("two\\nlines \\x1b[31m \\ud800")
    open(sys.argv[1], "w").write("whole")
"""


def chatty(tmp_path, shell, **environment):
    """Runs it in a shell; returns the exit code, both outputs, and what the file holds that it writes last."""
    target = tmp_path / "file"
    command = f'"$PYTHON" -c "$CODE" {target} {shell}; exit ${{PIPESTATUS[0]}}'
    own = os.environ | {"PYTHON": sys.executable, "CODE": CHATTY} | environment
    done = subprocess.run(["bash", "-c", command], capture_output=True, env=own)
    return done.returncode, done.stdout, done.stderr, target.read_text() if target.exists() else None


@pytest.mark.parametrize(
    "shell",
    [
        ">&-",
        "2>&-",
        ">&- 2>&-",
        "<&- >&- 2>&-",
        "| head -1",
        "2>&1 | head -c 3",
        "> /dev/full",
        "2> /dev/full | head -1",
    ],
)
def test_no_output_ends_a_run(tmp_path, shell):
    code, out, err, written = chatty(tmp_path, shell)
    assert (code, written) == (0, "whole")
    assert b"Traceback" not in err and b"Exception ignored" not in err and b"BrokenPipe" not in err
    assert out.count(b"\n") == 20000 if shell == "2>&-" else out.count(b"\n") <= 1


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}])
def test_what_an_encoding_lacks_is_an_escape(tmp_path, environment):
    code, out, err, written = chatty(tmp_path, "", **environment)
    assert (code, written) == (0, "whole") and out.splitlines()[7] == rb"line 7 \u2026 \u27e6 \U0001f642"
    assert err == b"error: two\\nlines \\x1b[31m \\ud800\n"


def test_streams_are_what_they_were_afterwards():
    before = sys.stdout, sys.stderr
    with pytest.raises(KeyError), patient_streams():
        assert isinstance(sys.stdout, Patient)
        raise KeyError
    assert (sys.stdout, sys.stderr) == before


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(28, "full"), OSError(5, "gone"), ValueError("closed")])
def test_a_stream_that_fails_is_left(error):
    class Failing(io.StringIO):
        def write(self, text):
            raise error

        def flush(self):
            raise error

    stream = Patient(Failing())
    assert stream.write("abc") == 3 and stream.write("d") == 1
    stream.flush()
    assert not stream.isatty()
    for gone in (None, types.SimpleNamespace(closed=True)):
        assert Patient(gone).write("x") == 1


def test_complaints_are_one_line(capsys):
    complain("a\nb\r\n\x1b[2Jc\u2028d")
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and line.isprintable() is False and line[:-1].isprintable()


# ---------------------------------------------------------------------------------------------------------------------
# Progress: the clock is the test's


class Clock:
    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr("eqx_slm.study.progress.time.perf_counter", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def story(progress, clock, *, arms=("a", "b"), seeds=(0, 1), steps=10, a_step=1.0, compiling=50.0, told=None):
    """A study as its events tell it; (seconds that were left, the estimate) at every step."""
    found = []
    total = len(arms) * len(seeds) * steps * a_step + len(arms) * compiling
    start = clock.now
    for seed in seeds:
        for arm in arms:
            if seed == seeds[0]:
                clock.now += compiling
                progress(Event("compiled", arm, seconds=compiling))
            for step in range(1, steps + 1):
                clock.now += a_step
                step_done = Step(
                    step, step * 64, 5.0, 1234.5, Evaluation(step, step, 5.25, None) if step == 10 else None
                )
                event = Event("progress", arm, seed, 1e-2, progress=step_done)
                progress(event)
                if told is not None:
                    told.append((arm, step))
                found.append((total - (clock.now - start), progress.left(event)))
            progress(Event("sampling", arm, seed))
            progress(Event("run", arm, seed, 1e-2, seconds=steps * a_step))
    return found


def test_the_estimate_counts_compiling_apart_from_steps(clock):
    """Each of two arms compiles for 50 s and then takes 1 s a step: after two steps nothing is unknown."""
    progress = Progress(2, 4, 10, Console(file=io.StringIO(), width=120))
    with progress:
        found = story(progress, clock)
    assert found[0][1] is None  # one step gives no rate, and compiling is none
    for true, estimate in found[1:]:
        assert estimate == pytest.approx(true, abs=1e-6)


def test_seeds_at_once_and_rows_that_were_there_are_counted(clock):
    progress = Progress(1, 4, 10, Console(file=io.StringIO(), width=120))
    with progress:
        progress(Event("kept", "a", 0))
        for step in (1, 2):
            clock.now += 3.0
            event = Event("progress", "a", 1, progress=Step(step, step, 5.0, 1.0), runs=3)
            progress(event)
        assert progress.left(event) == pytest.approx(8 * 3.0)


def test_plain_lines_say_what_is_done(clock):
    out = io.StringIO()
    with Progress(2, 4, 10, Console(file=out, width=120)) as progress:
        story(progress, clock)
    lines = out.getvalue().splitlines()
    assert "a: step compiled in 50.0 s" in lines and "run 4/4 done: b seed 1, lr 0.01: 10 s" in lines
    assert any(line.startswith("a seed 0: step 10/10, loss 5.000 val 5.250") for line in lines)
    assert not any("0:00 left" in line for line in lines) and not any("\x1b" in line for line in lines)


@pytest.mark.parametrize("name", ["dense-tied-deep", "a" * 60, "日本語", "[red]x[/red]\x1b[2J"])
@pytest.mark.parametrize("width", [80, 100, 200])
def test_the_live_line_has_its_bar(clock, name, width):
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=True, color_system=None, legacy_windows=False)
    with Progress(1, 1, 10, console) as progress:
        progress(Event("compiled", name, seconds=1.0))
        for step in (1, 2, 3):
            clock.now += 250.0
            step_done = Step(step, step, 12.345, 123456.0, Evaluation(step, step, 12.345, None))
            progress(Event("progress", name, 100, 1e-2, progress=step_done))
        progress.live.refresh()
        line = console.render_lines(progress.live.get_renderable())
        text = "".join(segment.text for segment in line[0])
        assert len(line) == 1 and "loss 12.345 val 12.345 123k tok/s 29:10 left" in text
        width_of_bar = progress.live.columns[1].bar_width
        assert 6 <= width_of_bar < text.index("loss") and "━" in text
        progress(Event("sampling", name, 100))
        progress.live.refresh()
        assert "writing a sample" in "".join(s.text for s in console.render_lines(progress.live.get_renderable())[0])
    assert "\x1b[2J" not in out.getvalue()


def test_the_bar_is_drawn_in_ascii_where_nothing_else_can_be(clock):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    console = Console(file=Patient(out), width=80, force_terminal=True, color_system=None)
    with Progress(1, 1, 10, console) as progress:
        story(progress, clock, arms=("é…",), seeds=(0,))
    out.flush()
    assert b"\\xe9\\u2026" in out.buffer.getvalue()
