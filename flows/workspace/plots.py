"""`dvc plots` without a network: DVC's own page fetches the scripts that draw it (Vega) from a
content network whenever it is opened."""

import sys
from importlib.metadata import version
from pathlib import Path

from boss_core.io.files import write_bytes

TEMPLATE = Path(".dvc/boss-plots.html")
VEGA_LITE = "5"  # that DVC's plots are written in
# DVC puts the plots between these braces. The scripts are in a function: their names are none of
# the page's.
PAGE = """<!DOCTYPE html>
<html>
<head>
<meta charset="utf-8">
{refresh_tag}
<title>DVC plots</title>
<style>table { border-spacing: 15px; }</style>
<!-- MADE_OF -->
<script>(() => {
SCRIPTS
})();</script>
</head>
<body>
{plot_divs}
</body>
</html>
"""


def settle_plots(root: Path) -> None:
    """Let `dvc plots show` and `dvc plots diff` write pages that have their scripts inside: a
    template, named in DVC's settings of this machine, unless these name one already. Where it
    cannot be written a line says so, and the pages stay as DVC makes them."""
    from dvc.config import Config
    from dvc.exceptions import DvcException

    if not (root / ".dvc").is_dir():
        return  # DVC says what is wrong
    try:
        config = Config(str(root / ".dvc"))
        if config["plots"].get("html_template", TEMPLATE.name) != TEMPLATE.name:
            return
        _write_template(root / TEMPLATE)
        if "html_template" not in config["plots"]:
            with config.edit("local") as local:
                local.setdefault("plots", {})["html_template"] = TEMPLATE.name
    except DvcException:
        return  # as above
    except OSError as error:
        print(
            f"warning: {TEMPLATE}: {error.strerror}; the pages of `dvc plots` need a network",
            file=sys.stderr,
        )


def _write_template(path: Path) -> None:
    """Unless it is there, of the same versions of what it is made of."""
    from vl_convert import javascript_bundle

    vega_lite = _newest(VEGA_LITE)
    made_of = f"Vega-Lite {vega_lite} of vl-convert-python {version('vl-convert-python')}"
    if path.is_file() and made_of.encode() in path.read_bytes()[:1000]:
        return
    scripts = javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=vega_lite)
    scripts = scripts.replace("</script", "<\\/script")  # would end it
    page = PAGE.replace("MADE_OF", made_of, 1).replace("SCRIPTS", scripts, 1)
    write_bytes(path, page.encode())


def _newest(major: str) -> str:
    """The newest version of Vega-Lite of a major one that is at hand."""
    from vl_convert import get_vegalite_versions

    return max(
        (v for v in get_vegalite_versions() if v.split(".")[0] == major),
        key=lambda v: [int(part) for part in v.split(".")],
    )
