"""A review as one HTML page that needs only a browser: no server, no network, no other file.

Its Content-Security-Policy lets it load nothing and run only the two scripts inside it, by their hashes. Jinja2 escapes every
value that the template inserts, except the parts that this module has rendered itself.
"""

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

from markupsafe import Markup
from nibabel.orientations import io_orientation

from dicom_io.segmentation import Structure
from monai_unet_app.errors import UsageError
from monai_unet_app.report.blocks import Facts, Text
from monai_unet_app.report.html import environment, render, report_style

from .display_window import shown_channel, slice_axis, window_presets
from .embedded import UNCERTAINTY_STEPS, Embedded
from .key_images import KeySection, anatomical_slices
from .review_sections import MARK, facts, gate, statements, structure_table
from .reviewed_case import ReviewedCase, file_name

LIBRARY = "niivue.umd.js.gz"
"""NiiVue 0.69.0 as it is published, BSD-2-Clause; see `static/README.md`."""

# Without semicolon, comma, quote and space, which would end a source of the policy and begin another directive
_SAFE_URL = re.compile(r"^[A-Za-z0-9._~:/?#@!$&()*+=%\[\]-]+$")


def render_page(
    case: ReviewedCase,
    patient: Mapping[str, str],
    sections: list[KeySection],
    embedded: Embedded,
    post_url: str | None = None,
    *,
    paper: str = "",
) -> str:
    """The page as text.

    Args:
        case: The case.
        patient: From `patient_and_study`; empty if the source names no patient.
        sections: Key images.
        embedded: The layers of the viewer.
        post_url: Address to which a decision is sent; None: it is saved as a draft.
        paper: Name of the PDF beside the page; empty without a PDF.

    Raises:
        UsageError: The page may not send to this URL.
    """
    library, script = (_static(LIBRARY) if embedded.layers else ""), _static("review.js")
    style = report_style() + _static("review.css") + _colours(case.structures)
    sentences = statements(case) + ([embedded.note] if embedded.note else [])
    markup = {
        "gate": "\n".join(map(render, gate(case))),
        "table": _with_swatches(render(structure_table(case)), case.structures),
        "statements": "\n".join(render(Text(sentence)) for sentence in sentences),
        "facts": render(Facts(facts(case))),
        "style": style,
        "library": library,
        "script": script,
        "data": _json(_data(case, sections, embedded)),
    }
    template = environment(__package__).get_template("page.html")
    return template.render(
        {name: Markup(text) for name, text in markup.items()},
        case=case,
        patient=patient,
        sections=sections,
        embedded=embedded,
        policy=_policy(style, (library, script), post_url),
        post_url=post_url,
        mark=MARK,
        paper=paper,
    )


def _policy(style: str, scripts: Iterable[str], post_url: str | None) -> str:
    allowed = " ".join(_hash(script) for script in scripts)
    return (
        f"default-src 'none'; script-src {allowed}; style-src {_hash(style)}; img-src data: blob:; "
        f"connect-src {_origin(post_url)}; base-uri 'none'; form-action 'none'"
    )


def _origin(post_url: str | None) -> str:
    """The CSP source to which the page may send: nothing, its own server, or the server of an absolute URL."""
    if post_url is None:
        return "'none'"
    parts = urlsplit(post_url)
    whole = parts.scheme in ("http", "https") and parts.netloc
    if not _SAFE_URL.match(post_url) or parts.username or not (whole or (not parts.scheme and not parts.netloc)):
        raise UsageError(
            "the URL that decisions are sent to is not plain; a path on the page's own server, or http(s)://host/path without "
            "user name, is needed; correct it"
        )
    return f"{parts.scheme}://{parts.netloc}" if whole else "'self'"


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _colours(structures: Iterable[Structure]) -> str:
    """CSS with a class for the colour of each structure, because the policy forbids style attributes."""
    rules = (f".s{structure.number} {{ background: {structure.segment.colour}; }}" for structure in structures)
    return "\n".join(["", *rules, ""])


def _with_swatches(table: str, structures: Iterable[Structure]) -> str:
    """The table of structures with a spot of the structure's colour before each name."""
    swatches = iter(f'<span class="swatch s{structure.number}"></span>' for structure in structures)
    return re.sub(r"<tr><td>", lambda match: match[0] + next(swatches, ""), table)


def _data(case: ReviewedCase, sections: list[KeySection], embedded: Embedded) -> dict[str, Any]:
    """The data of the case for the script."""
    source = case.document["source"]
    return {
        "case": case.id,
        "file_name": file_name(case.id),
        "result_sha256": case.result_sha256,
        "labels_sha256": case.labels_sha256,
        "structures": _structures(case.structures),
        "planar": case.image.planar,
        "places": [list(section.place_mm) for section in sections],
        "window": embedded.window,
        "windows": window_presets(shown_channel(case.image), source["modality"], case.window),
        "unit": {"values": "HU" if source["modality"] == "CT" else "", "lengths": source["unit"]},
        # The viewer holds a part of a large image; its numbers of slices must be those of the captions
        "slices": dict(zip(("first", "count", "step"), anatomical_slices(case.image, embedded.box), strict=True)),
        "across": int(io_orientation(case.image.affine_ras)[slice_axis(case.image), 0]),
        "steps": UNCERTAINTY_STEPS,
        "layers": [
            {"name": layer.name, "kind": layer.kind}
            | ({"structures": _structures(layer.structures)} if layer.structures else {})
            for layer in embedded.layers
        ],
    }


def _structures(structures: Iterable[Structure]) -> list[dict[str, Any]]:
    return [{"number": each.number, "label": each.label, "rgb": list(each.segment.rgb)} for each in structures]


def _json(document: object) -> str:
    """JSON for a script element: it holds no character that could end the element."""
    text = json.dumps(document, ensure_ascii=True)
    # "</script" and "<!--" would end or change the script element; JSON reads the escapes as the same characters
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _static(name: str) -> str:
    content = (files(__package__) / "static" / name).read_bytes()
    return (gzip.decompress(content) if name.endswith(".gz") else content).decode("utf-8")
