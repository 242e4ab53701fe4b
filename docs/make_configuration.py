"""Makes docs/configuration.md from the schema: `python docs/make_configuration.py`."""

from pathlib import Path

from trustchain_ray.config import describe

# ruff: noqa: E501
HEAD = """# Configuration

One YAML file or several, merged left to right, then dotted overrides:
`trustchain train -c configs/quickstart.yaml -c mine.yaml model.lora.rank=8`. `--dry-run` prints the result. An unknown key is refused
with the nearest valid name. A relative path in a YAML file is taken from that file's folder where something stands there. Values may use
the environment: `${oc.env:NAME,default}`.

This page is made from `trustchain_ray/config.py`.

| key | default | meaning |
|---|---|---|
"""


def page() -> str:
    """The whole page."""
    rows = []
    for path, default, doc in describe():
        if default:
            rows.append(f"| `{path}` | `{default}` | {doc.replace('|', '/')} |")
        else:
            rows.append(f"| **{path}** | | {doc.replace('|', '/')} |")
    return HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    (Path(__file__).parent / "configuration.md").write_text(page(), encoding="utf-8")
