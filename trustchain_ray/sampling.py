"""Keyed Poisson inclusion: which records a training step reads.

Each record decides by itself, from (key, its id), in which steps it takes part; the gaps between its
steps are geometric, so inclusion is exactly Poisson sampling. Removing a record therefore changes nothing
for any other record, and the first step that used it is known.
"""

import numpy as np

from trustchain_ray.config import TrainingConfig
from trustchain_ray.keys import generator


def inclusion_steps(key: bytes, record_id: str, rate: float, steps: int) -> list[int]:
    """The steps (0-based, of `steps`) that include a record at inclusion probability `rate`.

    The geometric gap is made by hand from a uniform number, since NumPy does not promise that its
    distributions stay the same between versions.
    """
    if rate <= 0:
        return []
    if rate >= 1:
        return list(range(steps))
    draws = generator(key, "inclusion", record_id)
    log_keep = float(np.log1p(-rate))
    step = -1
    included: list[int] = []
    while True:
        uniform = (int(draws.bit_generator.random_raw()) >> 11) * 2.0**-53  # [0, 1), 53 bits
        gap = float(np.log1p(-uniform)) / log_keep
        if gap >= steps - 1 - step:  # also where it is beyond any integer
            return included
        step += 1 + int(gap)
        included.append(step)


def plan(key: bytes, record_ids: list[str], rate: float, steps: int) -> list[list[int]]:
    """For each step the indices into `record_ids` that it includes, in the order of the ids.

    Returns
    -------
    list of `steps` lists; some may be empty (an empty step still steps the optimizer).
    """
    order = sorted(range(len(record_ids)), key=record_ids.__getitem__)
    batches: list[list[int]] = [[] for _ in range(steps)]
    for index in order:
        for step in inclusion_steps(key, record_ids[index], rate, steps):
            batches[step].append(index)
    return batches


def sampling_rate(training: TrainingConfig, records: int) -> float:
    """`training.sampling_rate`, or the rate at which a step expects `batch_size` of so many records."""
    return training.sampling_rate or min(1.0, training.batch_size / max(1, records))
