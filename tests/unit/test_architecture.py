"""Who imports whom, in fresh interpreters."""

import ast
import pkgutil
import re
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_dry_run_is_light_too():
    loaded = modules_after(
        "from trustchain_ray.cli import main\nassert main(['train', '-c', 'configs/quickstart.yaml', '--dry-run']) == 0"
    )
    assert not loaded & set(HEAVY)


UNPICKLERS = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
SOURCES = [path for package in ("ledger", "envs", "trustchain_ray") for path in sorted((ROOT / package).rglob("*.py"))]


def names_in(path: Path) -> set[str]:
    """Modules that a file imports, and the functions that it calls, as `module.function`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module.split(".")[0], *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call):
            found.add(ast.unparse(node.func))
            found |= {
                "allow_pickle"
                for word in node.keywords
                if word.arg == "allow_pickle" and ast.unparse(word.value) != "False"
            }
    return found


def test_no_file_of_ours_unpickles():
    unsafe = {*UNPICKLERS, "torch.load", "torch.jit.load", "allow_pickle"}
    word = re.compile("pickle|dill|joblib|shelve|marshal|torch")  # parsing the others would only take time
    suspects = [path for path in SOURCES if word.search(path.read_text(encoding="utf-8"))]
    found = {str(path.relative_to(ROOT)): names for path in suspects if (names := names_in(path) & unsafe)}
    assert not found, "read safetensors or JSON: unpickling runs what the sender wants"


def test_the_search_for_unpickling_finds_it(tmp_path: Path):
    for code in ("import pickle", "from pickle import loads", "import torch\ntorch.load('x')", "f(allow_pickle=True)"):
        (tmp_path / "a.py").write_text(code)
        assert names_in(tmp_path / "a.py") & {"pickle", "torch.load", "allow_pickle"}
    (tmp_path / "a.py").write_text("numpy.load('x', allow_pickle=False)")
    assert "allow_pickle" not in names_in(tmp_path / "a.py")


def test_the_passphrase_of_keys_goes_into_no_runtime_environment():
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        if "env_vars" in text:
            assert "os.environ" not in text, f"{path}: what Ray sends to workers is listed, never copied"
            assert "PASSPHRASE" not in text
    readers = [path.relative_to(ROOT).as_posix() for path in SOURCES if "environ.get(PASSPHRASE" in path.read_text()]
    assert readers == ["ledger/identity.py"]
