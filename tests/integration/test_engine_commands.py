"""The other commands: generate, inspect, bench."""

import json
import signal
import subprocess

import gguf

from tests.integration.engine_process import COMMAND, MODEL, WAIT_S

PROMPT = "The capital of France is"


def run(*arguments: str, said: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=WAIT_S, input=said
    )


def test_generate_says_what_greedy_decoding_says() -> None:
    options = ("--prompt", PROMPT, "-n", "6", "--temperature", "0")
    done = run("generate", "-m", str(MODEL), *options)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Paris" in done.stdout


def test_a_seed_gives_the_same_again() -> None:
    options = ("--prompt", "Once", "-n", "8", "--temperature", "1", "--seed", "5")
    first, again = (run("generate", "-m", str(MODEL), *options).stdout for _ in range(2))
    assert first == again != ""


def test_a_chat_answers_each_line_and_ends_with_its_input() -> None:
    options = ("-n", "6", "--temperature", "0")
    done = run("generate", "-m", str(MODEL), *options, said="Say hi.\n\nAnd bye.\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.strip().splitlines()) >= 2


def test_ctrl_c_is_clean() -> None:
    process = subprocess.Popen(
        [*COMMAND, "generate", "-m", str(MODEL), "--prompt", "Count:", "-n", "4000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=WAIT_S)
    assert process.returncode == 130
    assert stderr.strip() == b""


def test_errors_are_one_line() -> None:
    for arguments in (
        ("generate", "-m", "/nowhere.gguf", "-p", "x"),
        ("inspect", "-m", "/nowhere.gguf"),
        ("bench", "-m", "/nowhere.gguf"),
        ("generate", "-m", str(MODEL), "-p", "x y z " * 4000),
    ):
        done = run(*arguments)
        assert (done.returncode, done.stdout) == (1, "")
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_inspect_counts_what_the_format_s_own_package_counts() -> None:
    done = run("inspect", "-m", str(MODEL), "--json")
    report = json.loads(done.stdout)
    reader = gguf.GGUFReader(MODEL)
    counted: dict[str, list[int]] = {}
    for tensor in reader.tensors:
        of_type = counted.setdefault(tensor.tensor_type.name, [0, 0])
        of_type[0] += 1
        of_type[1] += int(tensor.n_bytes)
    assert report["file_bytes"] == MODEL.stat().st_size
    told = {kind["type"]: [kind["n_tensors"], kind["bytes"]] for kind in report["tensors"]}
    assert told == counted
    assert run("inspect", "-m", str(MODEL)).returncode == 0


def test_bench_measures_and_says_of_what() -> None:
    done = run("bench", "-m", str(MODEL), "-p", "16", "-n", "4", "-r", "1", "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 0
    prefill, decode = report["speeds"]
    assert (prefill["phase"], prefill["tokens"]) == ("prefill", 16)
    assert (decode["phase"], decode["tokens"]) == ("decode", 4)
    assert min(prefill["tokens_per_s"], decode["tokens_per_s"]) > 0
