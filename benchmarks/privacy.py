"""Differential privacy measured: accuracy by budget, and what an attack on a trained model finds.

    python -m benchmarks.privacy utility      # accuracy by budget, form and number of records; needs TRUSTCHAIN_DATA
    python -m benchmarks.privacy audit        # a lower bound of epsilon by canaries, beside the account's upper bound

Each figure is added to `benchmarks/results/privacy.json` as it is measured; what the file holds is not measured
again unless `--fresh` is given.
"""

from benchmarks.common import continued, parser


def main() -> None:
    arguments = parser("privacy", __doc__)
    arguments.add_argument("part", choices=["utility", "audit"])
    arguments.add_argument("--seeds", type=int, default=3, help="how many keys")
    arguments.add_argument("--fresh", action="store_true", help="measure everything again")
    options = arguments.parse_args()
    done, save = continued(options, options.part)
    if options.part == "utility":
        from benchmarks.privacy_utility import utility_part, utility_tables

        utility_part(done, save, options.seeds)
        print(utility_tables(done))
    else:
        from benchmarks.privacy_audit import audit_part, audit_table

        audit_part(done, save, options.seeds)
        print(audit_table(done))


if __name__ == "__main__":
    main()
