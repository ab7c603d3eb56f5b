"""Records conform to docs/report.schema.json and say no more than is known."""

from __future__ import annotations

import datetime
import io
import json

import c2pa
import jsonschema
import numpy as np
import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from PIL import Image

from model.types import Label
from tests.scripts.launch import ROOT
from utils.infer.intake import Opened, open_picture
from utils.infer.pipeline import SidaPipeline
from utils.infer.prediction import Prediction
from utils.infer.provenance import credentials, exif
from utils.infer.report import Rules, band, build, failure

SCHEMA = json.loads((ROOT / "docs" / "report.schema.json").read_text())
CHECK = jsonschema.Draft202012Validator(SCHEMA)
PHOTO = ROOT / "examples" / "SID_handful" / "test" / "tampered" / "fish26_gan_patch.jpg"


@pytest.fixture(scope="module")
def pipe() -> SidaPipeline:
    return SidaPipeline.from_pretrained(ROOT / "ck" / "SIDA-tiny", device="cpu")


def invented(real: float, size: tuple[int, int] = (256, 256), **more: object) -> Prediction:
    """A prediction with this probability of a photograph."""
    label = Label.REAL if real >= 0.5 else Label.TAMPERED
    opened = Opened(np.zeros((*size, 3), np.uint8), **more)
    return Prediction(opened, label, {"real": real, "full_synthetic": 0.0, "tampered": 1 - real}, "", None, 0.1)


def test_the_schema_documents_every_field() -> None:
    CHECK.check_schema(SCHEMA)
    for name, properties in (("root", SCHEMA["properties"]), ("file", SCHEMA["$defs"]["file"]["properties"])):
        assert all("const" in value or value.get("type") or "$ref" in value for value in properties.values()), name


@pytest.mark.parametrize("decode", ["forced", "explain"])
def test_records_conform(pipe: SidaPipeline, decode: str) -> None:
    record = build(pipe, pipe(PHOTO, decode=decode, max_new_tokens=20), Rules(), decode=decode)
    assert record["run"]["views"] == 4
    CHECK.validate(record)
    assert record["verdict"]["label"] == "tampered"
    assert record["localization"]["boxes"]
    assert (record["explanation"] is None) == (decode == "forced")
    assert record["file"]["name"] == str(PHOTO)
    assert json.loads(json.dumps(record)) == record
    CHECK.validate(failure("x.jpg", ValueError("cut")))


def test_a_reference_record_says_one_look(pipe: SidaPipeline) -> None:
    record = build(pipe, pipe(PHOTO, decode="reference", max_new_tokens=20), Rules(), decode="reference")
    CHECK.validate(record)
    assert record["run"]["views"] == 1


def test_pixels_have_a_record_too(pipe: SidaPipeline) -> None:
    CHECK.validate(build(pipe, pipe.detect(np.zeros((80, 90, 3), np.uint8)), Rules(), decode="forced"))


@pytest.mark.parametrize(
    ("prediction", "rules", "reason"),
    [
        (invented(0.45), Rules(abstain=0.7), "low margin: probability 0.55, 0.70 is asked for"),
        (invented(0.9, (50, 400)), Rules(), "too small: 400 x 50"),
        (invented(0.9, (300, 4000)), Rules(), "too large: 4000 x 300"),
        (invented(0.9, quantization=(80,) * 64), Rules(), "heavily recompressed: JPEG quality"),
    ],
)
def test_inconclusive_with_its_reason(pipe: SidaPipeline, prediction: Prediction, rules: Rules, reason: str) -> None:
    verdict = build(pipe, prediction, rules, decode="forced")["verdict"]
    assert verdict["label"] == "inconclusive"
    assert verdict["leaning"] == prediction.label.title
    assert reason in verdict["reasons"][0]
    assert verdict["evidence"] is None


@pytest.mark.parametrize(
    ("real", "pictures", "evidence"),
    [(0.6, 900, "weak"), (0.95, 900, "moderate"), (0.004, 900, "strong"), (0.0001, 900, "strong"), (0.0001, 5000, "very strong"), (0.0001, 0, None)],
)
def test_strength_of_evidence_is_bounded_by_what_calibrated_it(pipe: SidaPipeline, real: float, pictures: int, evidence: str | None) -> None:
    was, pipe.model.config.calibrated_on = pipe.model.config.calibrated_on, pictures
    assert build(pipe, invented(real), Rules(), decode="forced")["verdict"]["evidence"] == evidence
    pipe.model.config.calibrated_on = was


def test_bands_and_rules() -> None:
    assert [band(odds) for odds in (0.5, 9.9, 10, 100, 1000)] == ["weak", "weak", "moderate", "strong", "very strong"]
    with pytest.raises(ValueError, match="threshold is 1.5"):
        Rules(threshold=1.5)


def test_a_threshold_moves_the_verdict_and_its_mask(pipe: SidaPipeline) -> None:
    real = ROOT / "examples" / "SID_handful" / "test" / "real" / "bridge.jpg"
    trusting = pipe.detect(real)
    assert trusting.label is Label.REAL
    suspicious = pipe.detect(real, threshold=(1 - trusting.probs["real"]) / 2)
    assert suspicious.label is Label.TAMPERED
    assert suspicious.mask is not None
    assert pipe.detect(PHOTO, threshold=1.0).label is Label.REAL


def test_temperature_changes_probabilities_and_no_verdict(pipe: SidaPipeline) -> None:
    before = pipe.detect(PHOTO)
    was, pipe.model.config.cls_temperature = pipe.model.config.cls_temperature, 3 * pipe.model.config.cls_temperature
    after = pipe.detect(PHOTO)
    pipe.model.config.cls_temperature = was
    assert after.label is before.label
    logits = torch.tensor([before.probs[label.title] for label in Label]).log() / 3
    torch.testing.assert_close(torch.tensor(list(after.probs.values())), logits.softmax(0), atol=1e-4, rtol=0)


def test_exif_keeps_the_place_to_itself() -> None:
    tags = Image.Exif()
    tags[0x010F], tags[0x0131] = "Maker\0", "Program"
    tags.get_ifd(0x8825)[1] = "N"
    told = exif(tags)
    assert told == {"Make": "Maker", "Software": "Program", "gps": "redacted"}
    assert exif(tags, gps=True)["gps"] == {"GPSLatitudeRef": "N"}
    assert exif(None) == {"gps": "absent"}


def sign(picture: bytes, source_type: str) -> bytes:
    """`picture` with Content Credentials of a certificate made on the spot."""
    now = datetime.datetime.now(datetime.UTC)
    usages = dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only", "decipher_only"), False)
    authority, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    names = [
        x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "Test"), x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]) for name in ("CA", "Signer")
    ]
    chain = []
    for subject, public, ca in ((names[1], key, False), (names[0], authority, True)):
        builder = (
            x509.CertificateBuilder().subject_name(subject).issuer_name(names[0]).public_key(public.public_key()).serial_number(x509.random_serial_number())
        )
        builder = builder.not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(9))
        builder = builder.add_extension(x509.BasicConstraints(ca, None), critical=True)
        builder = builder.add_extension(x509.KeyUsage(digital_signature=not ca, key_cert_sign=ca, crl_sign=ca, **usages), critical=True)
        builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public.public_key()), critical=False)
        if not ca:
            builder = builder.add_extension(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
        chain.append(builder.sign(authority, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo(alg=b"es256", sign_cert=b"".join(chain), private_key=private, ta_url=None))
    action = {"action": "c2pa.created", "digitalSourceType": f"http://cv.iptc.org/newscodes/digitalsourcetype/{source_type}"}
    manifest = {"claim_generator_info": [{"name": "TestCam", "version": "2"}], "assertions": [{"label": "c2pa.actions", "data": {"actions": [action]}}]}
    out = io.BytesIO()
    c2pa.Builder(manifest).sign(signer, "image/jpeg", io.BytesIO(picture), out)
    return out.getvalue()


@pytest.mark.parametrize(("source_type", "ai"), [("trainedAlgorithmicMedia", True), ("digitalCapture", False)])
def test_content_credentials(source_type: str, ai: bool) -> None:
    signed = sign(PHOTO.read_bytes(), source_type)
    found = credentials(open_picture(signed))
    assert found == {"present": True, "validation_state": "Valid", "claim_generator": "TestCam 2", "says_ai": ai}
    changed = bytearray(signed)
    changed[-2000] ^= 1
    assert credentials(open_picture(bytes(changed)))["validation_state"] == "Invalid"
    assert credentials(open_picture(PHOTO))["present"] is False
