"""Approximate unlearning with LoRA: baselines and stop-gaps, whose results are labelled `APPROXIMATE`."""

from trustchain_ray.forgetting.approximate.ascent import Ascent
from trustchain_ray.forgetting.approximate.graddiff import GradDiff
from trustchain_ray.forgetting.approximate.npo import Npo
from trustchain_ray.forgetting.approximate.perturb import Perturb
from trustchain_ray.forgetting.approximate.simnpo import SimNpo

METHODS = {"ascent": Ascent, "graddiff": GradDiff, "npo": Npo, "simnpo": SimNpo, "perturb": Perturb}
