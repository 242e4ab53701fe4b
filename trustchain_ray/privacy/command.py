"""The command line of `trustchain privacy plan`: what a budget costs, before anything is trained."""

import argparse
import json
from typing import Any

from trustchain_ray.errors import UsageError

EXAMPLES = """examples:
  trustchain privacy plan -c configs/sentiment.yaml privacy.dp=record privacy.epsilon=8
  trustchain privacy plan -c configs/quickstart.yaml privacy.dp=subject privacy.epsilon=3 privacy.max_removals=2
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    plan = actions.add_parser(
        "plan", help="noise, budget and signal of a configuration", epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    plan.add_argument("-c", "--config", action="append", default=[], metavar="FILE", help="YAML file")
    plan.add_argument("overrides", nargs="*", metavar="key=value", help="dotted overrides, applied last")
    plan.add_argument("--json", action="store_true", help="print one JSON object as the last line")


def run(arguments: argparse.Namespace) -> int:
    """Run the verb. Raises UsageError, TrustChainError."""
    if not arguments.config:
        raise UsageError("name a configuration: trustchain privacy plan -c configs/quickstart.yaml privacy.dp=record")
    from trustchain_ray.config_files import load_config
    from trustchain_ray.privacy.plan import plan

    config = load_config(arguments.config, arguments.overrides)
    if config.privacy.dp == "none":
        raise UsageError("privacy.dp=none: nothing to plan; choose record, subject, organization or paper")
    found = plan(config)
    print(_table(found))
    if arguments.json:
        print(json.dumps(found))
    return 0


def _table(found: dict[str, Any]) -> str:
    header = (
        "organization", "cohort", "units", "rate", "steps", "delta", "noise", "epsilon", "removals", "noise/signal",
    )  # fmt: skip
    lines = [f"{header[0]:<18}{header[1]:<14}" + "".join(f"{name:>13}" for name in header[2:])]
    for row in found["members"]:
        spent = [f"{row[k]:.3f}" if row[k] is not None else "per step" for k in ("epsilon", "with_removals")]
        cells = [row["units"], f"{row['rate']:.4f}", row["steps"], f"{row['delta']:.2g}", f"{row['noise']:.3f}", *spent,
                 f"{row['noise_to_signal']:.2f}"]  # fmt: skip
        lines.append(f"{row['organization']:<18}{row['cohort']:<14}" + "".join(f"{cell!s:>13}" for cell in cells))
    lines += ["", f"budget epsilon {found['budget']:g} for every {found['dp']}; {found['values']:,} trained values"]
    if found["dp"] == "paper":
        lines.append("paper: the noise holds for one step at this epsilon; over the run nothing is composed")
    if found["warning"]:
        lines.append(f"warning: {found['warning']}")
    return "\n".join(lines)
