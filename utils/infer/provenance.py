"""What a file says about itself: hashes, container, compression, EXIF, Content Credentials. Nothing is asked of a network."""

from __future__ import annotations

import hashlib
import io
import json
from typing import Any

import c2pa
import imagehash
from PIL import ExifTags, Image

from utils.data.facts import table_quality
from utils.infer.intake import Opened

TOLD = ("Make", "Model", "Software", "DateTime", "Artist", "Copyright", "ImageDescription", "HostComputer")  # of EXIF, main directory
TOLD_BY_CAMERA = ("DateTimeOriginal", "OffsetTimeOriginal", "LensModel", "ExposureTime", "FNumber", "ISOSpeedRatings", "FocalLength")
LENGTH = 200  # characters of a text in a report
OFFLINE = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False, "verify_trust": False}}
BY_AI = ("trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia")  # IPTC digital source types
MIME = {
    "JPEG": "image/jpeg",
    "MPO": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "AVIF": "image/avif",
    "HEIF": "image/heif",
    "TIFF": "image/tiff",
    "GIF": "image/gif",
}


def describe(opened: Opened, gps: bool = False) -> dict[str, Any]:
    """The report's `file`; where it was taken is left out unless `gps`."""
    height, width = opened.rgb.shape[:2]
    content = opened.content
    return {
        "name": opened.name,
        "sha256": hashlib.sha256(content).hexdigest() if content is not None else None,
        "bytes": len(content) if content is not None else None,
        "container": opened.container,
        "width": width,
        "height": height,
        "mode": opened.mode,
        "frames": opened.frames,
        "notes": list(opened.notes),
        "perceptual_hash": str(imagehash.phash(Image.fromarray(opened.rgb))),
        "jpeg_quality": table_quality(opened.quantization),
        "exif": exif(opened.exif, gps),
        "c2pa": credentials(opened),
    }


def exif(found: Image.Exif | None, gps: bool = False) -> dict[str, Any]:
    """Who and what made the picture, as it claims: name -> text. `gps` is "absent", "redacted", or what it says."""
    if found is None:
        return {"gps": "absent"}
    told = _texts(found, TOLD, ExifTags.TAGS) | _texts(_directory(found, ExifTags.IFD.Exif), TOLD_BY_CAMERA, ExifTags.TAGS)
    place = _directory(found, ExifTags.IFD.GPSInfo)
    if not place:
        return told | {"gps": "absent"}
    return told | {"gps": _texts(place, tuple(ExifTags.GPSTAGS.values()), ExifTags.GPSTAGS) if gps else "redacted"}


def _directory(found: Image.Exif, which: int) -> dict[int, Any]:
    try:
        return dict(found.get_ifd(which))
    except (ValueError, TypeError, KeyError, SyntaxError, OSError):  # a broken directory tells nothing
        return {}


def _texts(values: Any, names: tuple[str, ...], tags: dict[int, str]) -> dict[str, str]:
    found = {tags[tag]: value for tag, value in dict(values).items() if tags.get(tag) in names}
    texts = {name: value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value) for name, value in found.items()}
    return {name: text.replace("\0", "").strip()[:LENGTH] for name, text in texts.items()}


def credentials(opened: Opened) -> dict[str, Any]:
    """Content Credentials (C2PA) inside the file. A manifest kept elsewhere is not fetched; who signed is not looked up, so nothing is "Trusted"."""
    nothing = {"present": False, "validation_state": None, "claim_generator": None, "says_ai": None}
    if opened.content is None or opened.container not in MIME:
        return nothing
    try:
        with (
            c2pa.Context(c2pa.Settings.from_dict(OFFLINE)) as context,
            c2pa.Reader(MIME[opened.container], io.BytesIO(opened.content), context=context) as reader,
        ):
            found = json.loads(reader.json())
    except c2pa.C2paError.ManifestNotFound:
        return nothing
    except c2pa.C2paError.RemoteManifest:
        return nothing | {"present": True, "error": "the manifest is kept elsewhere and was not fetched"}
    except c2pa.C2paError as error:
        return nothing | {"present": None, "error": str(error)[:LENGTH]}
    manifest = found.get("manifests", {}).get(found.get("active_manifest"), {})
    made = (manifest.get("claim_generator_info") or [{}])[0]
    generator = " ".join(str(made[key]) for key in ("name", "version") if key in made) or manifest.get("claim_generator")
    said = json.dumps([m.get("assertions", []) for m in found.get("manifests", {}).values()])
    return {
        "present": True,
        "validation_state": found.get("validation_state"),
        "claim_generator": generator,
        "says_ai": any(f"/{kind}" in said for kind in BY_AI),
    }
