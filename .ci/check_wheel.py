"""Is a wheel ready for an index? Usage: check_wheel.py WHEEL."""

import subprocess
import sys
import zipfile
from pathlib import Path

from packaging.metadata import Metadata

ROOT = Path(__file__).parents[1]
MOST = 8e6  # bytes
SUMMARY = 512  # characters, of an index


def check(path: Path) -> list[str]:
    """What is wrong with a wheel, a sentence each."""
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        (info,) = {n.split("/")[0] for n in names if n.split("/")[0].endswith(".dist-info")}
        metadata = Metadata.from_email(wheel.read(f"{info}/METADATA"))  # raises if it is not valid
        entry_points = wheel.read(f"{info}/entry_points.txt").decode()
    readme = (ROOT / "README.md").read_text()
    tracked = subprocess.run(
        ["git", "ls-files", "opml_jax"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    foreign = sorted(n for n in names if not n.startswith(("opml_jax/", f"{info}/")))
    lacking = sorted(set(tracked) - names)
    readable = (metadata.description or "").strip() == readme.strip()
    return [
        text
        for wrong, text in (
            (path.stat().st_size > MOST, f"{path.stat().st_size / 1e6:.1f} MB, of {MOST / 1e6:g}"),
            ("opml_jax/py.typed" not in names, "py.typed is not inside"),
            (lacking, f"files of the package are not inside: {', '.join(lacking[:5])}"),
            (foreign, f"files that are not of the package: {', '.join(foreign[:5])}"),
            (not readable, "the long description is not README.md"),
            (metadata.description_content_type != "text/markdown", "README.md is not markdown"),
            (not 0 < len(metadata.summary or "") <= SUMMARY, "no summary that an index takes"),
            (metadata.license_expression != "Apache-2.0", "the license is not stated"),
            (f"{info}/licenses/LICENSE" not in names, "the license is not inside"),
            (not metadata.requires_python, "no version of Python is stated"),
            ("md" not in (metadata.provides_extra or []), "extras are not stated"),
            ("opml = opml_jax.cli:main" not in entry_points, "no command opml"),
        )
        if wrong
    ]


if __name__ == "__main__":
    problems = check(Path(sys.argv[1]))
    for problem in problems:
        print(f"{sys.argv[1]}: {problem}")
    sys.exit(bool(problems))
