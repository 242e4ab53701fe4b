"""Who imports whom, in fresh interpreters."""

import pkgutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import envs
import ledger

ROOT = Path(__file__).parents[2]
HEAVY = ("ray", "torch", "transformers", "peft")


def modules_after(code: str) -> set[str]:
    """Names of the modules that a fresh interpreter holds after some code; its last line of output."""
    ending = "\nimport sys\nprint('\\n' + ' '.join(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code + ending], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.strip().splitlines()[-1].split())


def import_all(package: ModuleType) -> str:
    names = [m.name for m in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    assert names
    return "import " + ", ".join(name for name in names if not name.endswith("__main__"))


@pytest.mark.parametrize(("package", "others"), [(ledger, ("envs",)), (envs, ("ledger",))], ids=["ledger", "envs"])
def test_packages_point_in_one_direction(package: ModuleType, others: tuple[str, ...]):
    loaded = modules_after(import_all(package))
    for other in (*others, "trustchain_ray", *HEAVY):
        assert other not in loaded
        assert not any(name.startswith(f"{other}.") for name in loaded)


def test_an_auditor_needs_neither_ray_nor_torch(tmp_path: Path):
    loaded = modules_after(
        "import sys, pathlib\n"
        f"sys.path.insert(0, {str(ROOT / 'tests' / 'ledger')!r})\n"
        "from fake_run import whole_run\n"
        f"base = pathlib.Path({str(tmp_path)!r})\n"
        "made = whole_run(base / 'run', base / 'keys')\n"
        "from trustchain_ray.cli import main\n"
        "assert main(['verify', str(made.dir)]) == 0\n"
    )
    assert "ledger.verify" in loaded
    assert not loaded & set(HEAVY)


def test_the_command_line_starts_light():
    loaded = modules_after("import trustchain_ray.cli")
    assert "trustchain_ray.cli" in loaded
    assert not loaded & {*HEAVY, "numpy", "omegaconf"}


def test_a_dry_run_is_light_too():
    loaded = modules_after(
        "from trustchain_ray.cli import main\nassert main(['train', '-c', 'configs/quickstart.yaml', '--dry-run']) == 0"
    )
    assert not loaded & set(HEAVY)
