"""Kill work at random moments, start it again, and compare with work that nobody disturbed.

    python -m tests.chaos train 30
    python -m tests.chaos prepare 20 --words 60000 --seed 0

What can be killed: `prepare`, `fetch`, `train` (one run of the preset `smoke`), `evaluate` (all that is scored of a
finished run), `study` (a whole small study in one process), `reproduce` (all notebooks, with their kernels and training
processes, which nobody tells). Prints one line a kill and exits with 1 unless the bytes
are the same, clocks and memory apart.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PACE = 0.002  # seconds between two blocks of 4 KiB, so that a download lasts long enough to be cut anywhere
HIDDEN_LOCK = re.compile(r"(^|/)\.[^/]*\.lock$")  # an empty file that tells a second fetch to wait; it may stay
# What two equal runs differ in: seconds, tokens a second and memory, and how long metrics.jsonl is with them
# (and so the checksum of a checkpoint's state, which holds them)
VARYING = re.compile(
    rb'"(?:\w*seconds|tokens_per_second|peak_memory|metrics_bytes)": [-+.\de]+,?\s*|"state.json": "[0-9a-f]{64}",?\s*'
)
# In some files of the main job also: the command, with the output folder; minutes; checksums of tables with clocks
ALSO_VARYING = {
    "environment.json": re.compile(rb'"command": "(?:[^"\\]|\\.)*"'),
    "summary.json": re.compile(rb'"(?:train|evaluate|total)": (?:[-+.\de]+|null)'),  # null: not done in one call
    "02_student_search.done.json": re.compile(rb'"tables/T3.csv": "[0-9a-f]{64}"'),
    "05_results.done.json": re.compile(rb'"tables/T7.csv": "[0-9a-f]{64}"'),
}
CLOCK = re.compile(r"search_ms|seconds|tokens_per_second|peak_memory|note")  # columns of T3 and T7

# Each line of input is an output folder: a child works on it. Modules are imported once, so every moment is work.
PROGRAM = """
import os, shutil, sys, traceback
from pathlib import Path
from wmlkit import reproduce, study, train
from wmlkit.config import load_preset
from wmlkit.settings import DataConfig
from wmlkit.data import download, fetch, prepare

def prepare_nursery(out):
    words = int(sys.argv[2])
    data = DataConfig(corpus="nursery", words=words, dev_words=words // 10, vocab_size=1312)
    prepare.prepare(data, out)

def fetch_release(out):
    fetch.official_ids = dict  # the files of this server are not the official ones
    download.CHUNK = 4096
    fetch.fetch("babylm2024-10m", out, sys.argv[2], patience=download.Patience((0.0,), 5.0))

def smoke(**changes):
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    return load_preset("smoke", {"data.words": int(sys.argv[2]), "train.checkpoint_every": 2, **changes})

def train_run(out):
    train.run(smoke(train__steps=24), out)

def evaluate_run(out):
    if not out.exists():  # trained once, before anything is killed; a kill leaves no half of the copy
        copy = out.with_name("copy")
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(Path(sys.argv[3]), copy)
        copy.rename(out)
    config = smoke()
    folder = train.run_folder(config, out)
    study.evaluate_all(folder, config.updated({"evaluate.per_paradigm": 40}), out)

def study_run(out):
    study.run_shard(smoke(study__runs=[["wml", 2], ["distill", 1]], study__seeds=[0]), out)

def reproduce_run(out):
    few = {"study.runs": '[["wml", 2], ["distill", 2]]', "study.seeds": "[0]", "data.words": sys.argv[2]}
    few |= {"ablations.settings": '[{"mutual.arm" = "dml"}]', "ablations.seeds": "[0]", "train.checkpoint_every": 2}
    reproduce.reproduce("smoke", [f"{key}={value}" for key, value in few.items()], out, (), False, lambda line: None)

work = {
    "prepare": prepare_nursery, "fetch": fetch_release, "train": train_run, "evaluate": evaluate_run,
    "study": study_run, "reproduce": reproduce_run,
}[sys.argv[1]]
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        try:
            work(Path(line.strip()))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@dataclass(frozen=True)
class Kill:
    """One kill: seconds after its start, files that it left, bytes in them."""

    after: float
    files: int
    size: int


def chaos(what: str, arguments: Sequence[str], folder: Path, kills: int, seed: int) -> tuple[list[Kill], bool]:
    """Kill the work `what` `kills` times, then let it end; (kills, same bytes in the end).

    The moments are drawn from the time that the undisturbed run takes. A run that ends before its moment is compared
    too but not counted: its folder is deleted, so that the next one has work again.
    """
    whole, killed = folder / "whole" / "runs", folder / "killed" / "runs"  # one name: notes have it in their commands
    command = [sys.executable, "-c", PROGRAM, what, *arguments]
    environment = os.environ | {"NO_PROXY": "127.0.0.1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    rng = random.Random(seed)
    done: list[Kill] = []
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
        env=environment,
    ) as process:
        usual = _run(process, whole, None)
        while len(done) < kills:
            after = rng.uniform(0.0, usual)
            if _run(process, killed, after) < 0:
                left = content(killed)
                done.append(Kill(after, len(left), sum(size for size, _ in left.values())))
                continue
            if differing(killed, whole):
                return done, False
            shutil.rmtree(killed)
        _run(process, killed, None)
    return done, not differing(killed, whole)


def _run(process: subprocess.Popen[str], out: Path, kill_after: float | None) -> float:
    """One run into `out`: its seconds, or -1 if it was killed, `kill_after` seconds after its start."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{out}\n")
    process.stdin.flush()
    child = int(process.stdout.readline())
    start = time.perf_counter()
    timer = threading.Timer(kill_after or 0.0, _kill, (child,))
    if kill_after is not None:
        timer.start()
    status = int(process.stdout.readline())
    timer.cancel()
    if os.WIFSIGNALED(status):
        return -1.0
    assert status == 0, f"the run into {out} ended with status {os.waitstatus_to_exitcode(status)}"
    return time.perf_counter() - start


def _kill(child: int) -> None:
    with suppress(ProcessLookupError):  # it has just ended
        os.kill(child, signal.SIGKILL)


def content(folder: Path) -> dict[str, tuple[int, str]]:
    """Size and SHA-256 of every file below `folder` but the locks, by path, of what `comparable` leaves."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not HIDDEN_LOCK.search(name):
            data = comparable(name, path.read_bytes())
            found[name] = (len(data), hashlib.sha256(data).hexdigest())
    return found


def comparable(name: str, data: bytes) -> bytes:
    """What two equal works have in common of the file `name`: all but clocks, memory and the output folder's name.

    Of an executed notebook its code and its pictures: the numbers it shows are those of its tables. Of report.html all
    but digits, commands and the downloads, which are the tables.
    """
    suffix, also = Path(name).suffix, ALSO_VARYING.get(Path(name).name)
    if suffix in (".json", ".jsonl"):
        data = VARYING.sub(b"", data)
        return also.sub(b"", data) if also else data
    if name.endswith(("tables/T3.csv", "tables/T7.csv")):
        rows = csv.DictReader(io.StringIO(data.decode()))
        return json.dumps([{k: v for k, v in row.items() if not CLOCK.search(k)} for row in rows]).encode()
    if suffix == ".ipynb":
        return json.dumps([_shown(cell) for cell in json.loads(data)["cells"]]).encode()
    if suffix == ".html":
        text = re.sub(r'<td class="long">.*?</td>|data:text/csv;base64,[^"]*', "", data.decode())
        return re.sub(r"-?\d[\d.,]*(?:e[-+]?\d+)?", "", text).encode()
    return data


def _shown(cell: dict[str, Any]) -> Any:
    if cell["cell_type"] != "code":
        return cell["source"]
    if "injected-parameters" in cell["metadata"].get("tags", []):
        return None  # they name the output folder
    outputs = cell["outputs"]
    pictures = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    return (
        cell["source"],
        cell["execution_count"],
        pictures,
        [o["ename"] for o in outputs if o["output_type"] == "error"],
    )


def differing(killed: Path, whole: Path) -> list[str]:
    """Names of the files that one of the folders lacks or that differ, named on standard error."""
    one, other = content(killed), content(whole)
    names = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    for name in names:
        print(f"differs: {name}", file=sys.stderr)
    return names


class Release:
    """A server on this machine with two zip files of nursery text, in the shape of the OSF's API; knows Range."""

    def __init__(self, words: int) -> None:
        from wmlkit.data import nursery

        self.files: dict[str, bytes] = {}
        with tempfile.TemporaryDirectory() as name:
            nursery.write_corpus(Path(name), words, words // 10, seed=0)
            for folder, suffix in (("train_10M", "train"), ("dev", "dev")):
                packed = io.BytesIO()
                # Stored, not compressed: as many bytes on the way as the text has.
                with zipfile.ZipFile(packed, "w") as archive:
                    for path in sorted(Path(name).glob(f"*.{suffix}")):
                        archive.writestr(zipfile.ZipInfo(f"{folder}/{path.name}"), path.read_bytes())
                self.files[f"/{folder}.zip"] = packed.getvalue()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        self.files["/nodes/ad7qg/files/osfstorage/"] = json.dumps({"data": self._entries(), "links": {}}).encode()
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def _entries(self) -> list[dict[str, Any]]:
        entries = []
        for name, data in self.files.items():
            hashes = {"sha256": hashlib.sha256(data).hexdigest()}
            attributes = {"name": name[1:], "kind": "file", "size": len(data), "extra": {"hashes": hashes}}
            entries.append({"attributes": attributes, "links": {"download": self.url + name}})
        return entries

    def _handler(release: Release) -> type[BaseHTTPRequestHandler]:  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *arguments: Any) -> None:
                pass

            def do_GET(self) -> None:
                data = release.files[self.path.split("?")[0]]
                asked = self.headers.get("Range", "")
                start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
                if asked and start >= len(data):
                    self.send_error(416)
                    return
                self.send_response(206 if asked else 200)
                if asked:
                    self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
                self.send_header("Content-Length", str(len(data) - start))
                self.end_headers()
                try:
                    for position in range(start, len(data), 4096):
                        self.wfile.write(data[position : position + 4096])
                        time.sleep(PACE)
                except OSError:  # the client was killed
                    return

        return Handler

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


def run(what: str, kills: int, folder: Path, words: int, seed: int) -> tuple[list[Kill], bool]:
    """`chaos` of a kind of work on nursery text of `words` words; ``fetch``: on a release with as much text."""
    if what == "evaluate":
        from wmlkit import train
        from wmlkit.config import load_preset

        train.run(load_preset("smoke", {"data.words": words, "train.checkpoint_every": 2}), folder / "trained")
        return chaos(what, [str(words), str(folder / "trained")], folder, kills, seed)
    if what != "fetch":
        return chaos(what, [str(words)], folder, kills, seed)
    release = Release(words)
    try:
        return chaos(what, [release.url], folder, kills, seed)
    finally:
        release.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("prepare", "fetch", "train", "evaluate", "study", "reproduce"))
    parser.add_argument("kills", type=int, nargs="?", default=20)
    parser.add_argument("--words", type=int, default=12_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        kills, same = run(given.what, given.kills, Path(name), given.words, given.seed)
    print("kill  after (s)  files left  bytes left")
    for number, kill in enumerate(kills, 1):
        print(f"{number:4}  {kill.after:9.2f}  {kill.files:10}  {kill.size:10,}")
    print(f"{given.what}, {len(kills)} kills: {'the same bytes' if same else 'OTHER BYTES'}")
    sys.exit(not same)


if __name__ == "__main__":
    main()
