"""Kills a removal just before each of its durable writes, and goes on with it. Run by a test.

`python removal_drill.py RUN HOME FOLDER ORGANIZATION FIRST STRIDE`: a process of its own, because it forks. Prints the
number of steps when every one of them was survived, and what all of them ended with.
"""

import json
import os
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "ledger"))

from conftest import DIED, die_before

from ledger.verify import verify_run
from trustchain_ray.forgetting.plan import Ask
from trustchain_ray.forgetting.unlearn import unlearn


def remove(run: str, asks: list[Ask]) -> str:
    result = unlearn(run, asks, "drop", lambda line: None, evaluate=False)
    return str(result["new_model_digest"])


def unfinished(run: str) -> bool:
    jobs = list(Path(run).glob("removals/*/job.json"))
    return bool(jobs) and '"stage":"done"' not in jobs[0].read_text()


def main(run: str, home: str, folder: Path, organization: str, first: int, stride: int) -> None:
    step, died, digests = first, True, set()
    ask = [Ask("organization", (), organization)]
    while died:
        here, keys = str(folder / "run"), str(folder / "home")
        for made, kept in ((here, run), (keys, home)):
            shutil.rmtree(made, ignore_errors=True)
            shutil.copytree(kept, made)
        os.environ["TRUSTCHAIN_HOME"] = keys
        pid = os.fork()
        if pid == 0:
            die_before(step)
            remove(here, ask)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status in (0, DIED), f"step {step}: ended with {status}"
        died = status == DIED
        done = not died
        if died:
            begun = Path(here, "removals", "0001", "job.json").is_file()
            if not begun or unfinished(here):
                digests.add(remove(here, [] if begun else ask))
            else:
                done = True
        if done:
            digests.add(json.loads(Path(here, "result.json").read_text())["model_digest"])
        report = verify_run(here)
        assert report.ok, f"after step {step}: {report.failure}"
        step += stride
    print(json.dumps({"steps": step - stride, "digests": sorted(digests)}))


if __name__ == "__main__":
    source, keystore, where, name, start, every = sys.argv[1:]
    main(source, keystore, Path(where), name, int(start), int(every))
