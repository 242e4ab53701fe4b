"""What `trustchain doctor` says of a processor."""

from pathlib import Path

import pytest

from trustchain_ray.doctor import emulates_bfloat16


@pytest.mark.parametrize(
    ("flags", "emulated"),
    [("fma avx2 avx512f", True), ("avx2 avx512_bf16", False), ("avx2 amx_bf16 amx_tile", False)],
)
def test_bfloat16_is_emulated_where_the_processor_has_no_instructions_for_it(
    tmp_path: Path, flags: str, emulated: bool
) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(f"processor\t: 0\nmodel name\t: x\nflags\t\t: fpu {flags}\n")
    assert emulates_bfloat16(str(info)) is emulated


def test_nothing_is_said_of_an_unknown_processor(tmp_path: Path) -> None:
    assert not emulates_bfloat16(str(tmp_path / "missing"))
    (tmp_path / "arm").write_text("Features\t: fp asimd bf16\n")
    assert not emulates_bfloat16(str(tmp_path / "arm"))
