"""The noise: a secret of the organization's own, normal, and never the same for two purposes."""

import math
import stat
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from trustchain_ray.errors import TrustChainError, UsageError
from trustchain_ray.keys import derive
from trustchain_ray.merge import FRACTION_BITS
from trustchain_ray.privacy.noise import commitment, gaussian, grid, load_or_create_secret, noise_key
from trustchain_ray.privacy.signal import noise_warning, private_update, signal_to_noise, step_noise
from trustchain_ray.privacy.steps import PrivateSteps

KEY = bytes(range(32))


def test_a_secret_is_made_once_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    secret = load_or_create_secret("north", tmp_path / "keys")
    path = tmp_path / "keys" / "north.noise"
    assert len(secret) == 32
    assert load_or_create_secret("north", tmp_path / "keys") == secret
    assert load_or_create_secret("south", tmp_path / "keys") != secret
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(p.name for p in path.parent.iterdir()) == ["north.noise", "south.noise"]
    assert commitment(secret) != commitment(load_or_create_secret("south", tmp_path / "keys"))
    assert len(commitment(secret)) == 64


def test_a_secret_that_others_can_read_or_that_is_none_is_refused_and_never_shown(tmp_path: Path) -> None:
    path = tmp_path / "north.noise"
    secret = load_or_create_secret("north", tmp_path)
    path.chmod(0o640)
    with pytest.raises(TrustChainError, match=r"chmod 600 .*north\.noise") as refusal:
        load_or_create_secret("north", tmp_path)
    assert secret.hex() not in str(refusal.value)
    path.chmod(0o600)
    path.write_bytes(secret + b"x")
    with pytest.raises(TrustChainError, match="has 32 bytes, this file has not"):
        load_or_create_secret("north", tmp_path)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(TrustChainError, match="is a symbolic link"):
        load_or_create_secret("north", tmp_path)
    steps = PrivateSteps("record", 1.0, 1.0, KEY)
    assert repr(KEY) not in repr(steps)
    assert KEY.hex() not in repr(steps)


def test_every_purpose_has_noise_of_its_own() -> None:
    base = ("run", "shard_0", 0, "a" * 64)
    others = [("run2", *base[1:]), ("run", "shard_1", *base[2:]), ("run", "shard_0", 1, base[3]), (*base[:3], "b" * 64)]
    keys = [noise_key(KEY, *purpose) for purpose in (base, *others)] + [noise_key(bytes(32), *base)]
    assert len(set(keys)) == len(keys)
    assert noise_key(KEY, *base) == keys[0]
    draws = [gaussian(key, step, 1000) for key in keys[:3] for step in (0, 1)]
    for i, one in enumerate(draws):
        for other in draws[:i]:
            assert abs(np.corrcoef(one, other)[0, 1]) < 0.2  # six standard errors


def test_noise_is_normal_and_a_function_of_key_and_step() -> None:
    values = gaussian(KEY, 3, 200_001)  # several blocks, odd
    np.testing.assert_array_equal(gaussian(KEY, 3, 200_001), values)
    assert values.shape == (200_001,)
    assert abs(values.mean()) < 5 / math.sqrt(values.size)
    assert abs(values.std() - 1) < 5 / math.sqrt(2 * values.size)
    for threshold, share in ((-1.0, 0.15866), (0.0, 0.5), (0.5, 0.69146), (2.0, 0.97725), (3.0, 0.99865)):
        deviation = math.sqrt(share * (1 - share) / values.size)
        assert abs((values < threshold).mean() - share) < 5 * deviation
    halves = np.corrcoef(values[:65_536], values[65_536:131_072])[0, 1]  # cosine and sine of the same draws
    assert abs(halves) < 5 / math.sqrt(65_536)
    assert gaussian(KEY, 3, 0).shape == (0,)


def test_noise_is_half_the_sum_of_four_box_muller_draws_of_a_chacha20_stream() -> None:
    stream = Cipher(algorithms.ChaCha20(derive(KEY, "step", 7), bytes(16)), mode=None).encryptor().update(bytes(64))
    words = [int.from_bytes(stream[i : i + 8], "little") for i in range(0, 64, 8)]
    uniform = [((word >> 11) + 0.5) / 2**53 for word in words]
    draws = [
        math.sqrt(-2 * math.log(radius)) * math.cos(2 * math.pi * angle)
        for radius, angle in zip(uniform[:4], uniform[4:], strict=True)
    ]
    assert gaussian(KEY, 7, 1)[0] == pytest.approx(sum(draws) / 2, rel=1e-12)


def test_the_grid_is_a_power_of_two_far_below_the_noise() -> None:
    for deviation in (0.45, 1.0, 3.7, 1e-6):
        unit = grid(deviation)
        assert math.log2(unit) == round(math.log2(unit))
        assert 2**-21 < unit / deviation <= 2**-20


def test_a_whole_update_is_clipped_and_noised_on_the_grid_of_the_merge() -> None:
    update = np.random.default_rng(0).normal(0, 0.01, 40_000).astype(np.float32)
    clipped = private_update(update, 0.5, 0.0, KEY, 3)
    assert 0.4999 < np.linalg.norm(clipped.astype(np.float64)) <= 0.5
    np.testing.assert_allclose(clipped, update * (0.5 / np.linalg.norm(update)), atol=1.1 * 2.0**-FRACTION_BITS)
    small = private_update(update, 100.0, 0.0, KEY, 3)
    np.testing.assert_allclose(small, update, atol=1.1 * 2.0**-FRACTION_BITS)
    noised = private_update(update, 0.5, 2.0, KEY, 3)
    on_grid = noised.astype(np.float64) * 2**FRACTION_BITS
    np.testing.assert_array_equal(on_grid, np.rint(on_grid))
    np.testing.assert_allclose(noised - clipped, gaussian(KEY, 3, 40_000), atol=1e-6)
    assert not np.array_equal(private_update(update, 0.5, 2.0, KEY, 4), noised)
    np.testing.assert_array_equal(private_update(np.zeros(3, np.float32), 0.5, 0.0, KEY, 1), np.zeros(3))
    with pytest.raises(TrustChainError, match="NaN or infinity"):
        private_update(np.array([1.0, np.nan], np.float32), 0.5, 1.0, KEY, 1)


def test_signal_to_noise_is_that_of_averaged_noise() -> None:
    values, organizations, noise = 10_000, 9, 2.0
    draws = sum(gaussian(KEY, number, values) for number in range(organizations)) / organizations
    measured = 1 / (noise * np.linalg.norm(draws))
    assert signal_to_noise(noise, values, organizations) == pytest.approx(measured, rel=0.03)
    assert step_noise(0.88, 393_216, 256) == pytest.approx(2.16, abs=0.01)
    text = noise_warning(2.68, 184_000, 10)
    assert text is not None
    assert "10 updates of 184,000 values has a signal-to-noise ratio of at most 0.0028" in text
    assert "1,321,5" in text  # organizations that it would take
    assert noise_warning(1.0, 100, 400) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("organization", 1.0, 1.0, KEY), "steps can be made private by record, subject, paper"),
        (("record", 0.0, 1.0, KEY), "privacy.clip=0 must be above 0"),
        (("record", 1.0, -1.0, KEY), "the noise -1 not below"),
        (("record", 1.0, 1.0, b"short"), "a noise key has 32 bytes, not 5"),
    ],
)
def test_impossible_private_steps_are_refused(arguments: tuple[str, float, float, bytes], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        PrivateSteps(*arguments)
