"""Secure aggregation: the coordinator learns the merge of a cohort's updates, and none of the updates.

The double-masking protocol of Bonawitz et al. (https://arxiv.org/abs/1611.04482) on the fixed point of the merge, so
that the merged bits are those of the plain merge. Two state machines and the messages between them, without Ray:
`Server` and `Client` take and return `Message`; who carries the messages is the caller's business.
"""

from trustchain_ray.secure_aggregation.client import Client
from trustchain_ray.secure_aggregation.errors import Misbehaved, TooFew
from trustchain_ray.secure_aggregation.messages import Message
from trustchain_ray.secure_aggregation.server import Result, Server
from trustchain_ray.secure_aggregation.session import Session, default_threshold

__all__ = ["Client", "Message", "Misbehaved", "Result", "Server", "Session", "TooFew", "default_threshold"]
