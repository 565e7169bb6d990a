"""Make small PDFs: with pages of text, and with pages that are only a picture."""

import io
import zlib

from pypdf import PdfReader, PdfWriter
from pypdf.generic import EncodedStreamObject, NameObject, StreamObject

CMAP = b"""/CIDInit /ProcSet findresource begin 12 dict begin begincmap
1 begincodespacerange <00> <FF> endcodespacerange 1 beginbfchar <41> <%s> endbfchar endcmap end end"""


def pdf(*pages: str | None, a_means: bytes = b"0041") -> bytes:
    """Return a PDF with one page per argument: its text, or a picture for None.

    a_means: the character that the font maps A to, as UTF-16 in hex.
    """
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>", b""]
    objects.append(b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /ToUnicode 5 0 R >>")
    objects.append(
        b"<< /Type /XObject /Subtype /Image /Width 1 /Height 1 /ColorSpace /DeviceGray /BitsPerComponent 8 /Length 1 >>"
        b"\nstream\n\x7f\nendstream"
    )
    cmap = CMAP % a_means
    objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(cmap), cmap))
    kids = []
    for text in pages:
        content = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode() if text else b"q 100 0 0 100 0 0 cm /I1 Do Q"
        resources = b"<< /Font << /F1 3 0 R >> >>" if text else b"<< /XObject << /I1 4 0 R >> >>"
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content))
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources %s /Contents %d 0 R >>"
            % (resources, len(objects))
        )
        kids.append(b"%d 0 R" % len(objects))
    objects[1] = b"<< /Type /Pages /Kids [%s] /Count %d >>" % (b" ".join(kids), len(kids))

    out, offsets = bytearray(b"%PDF-1.4\n"), []
    for number, content in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    out += b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, table)
    return bytes(out)


def encrypted(document: bytes, user_password: str, algorithm: str = "AES-256") -> bytes:
    """Return the document protected as office programs do it: changes need the owner's password."""
    writer = PdfWriter(PdfReader(io.BytesIO(document)))
    writer.encrypt(user_password, "the owner's", algorithm=algorithm)
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


def _page(content: bytes, compressed: bool = False) -> bytes:
    """Return a PDF of one page with this content."""
    writer = PdfWriter()
    stream = EncodedStreamObject() if compressed else StreamObject()
    stream._data = content
    if compressed:
        stream[NameObject("/Filter")] = NameObject("/FlateDecode")
    writer.add_blank_page(9, 9)[NameObject("/Contents")] = writer._add_object(stream)
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


def inflating(size: int) -> bytes:
    """Return a small PDF whose page decompresses to `size` bytes."""
    packer = zlib.compressobj(9)
    block = b" " * (1 << 24)
    content = b"".join(packer.compress(block) for _ in range(size >> 24)) + packer.flush()
    return _page(content, compressed=True)


def without_end() -> bytes:
    """Return a PDF whose text contains an inline image without an end."""
    return _page(b"BT ET BI /W 1 /H 1 /F /DCT ID \xff\xd8\xff")


def laborious(pages: int = 50, operators: int = 60_000) -> bytes:
    """Return a PDF of a few kB that takes a minute to read: its pages share one content with many operators."""
    writer = PdfWriter(PdfReader(io.BytesIO(_page(zlib.compress(b"BT ET " * operators, 9), compressed=True))))
    for _ in range(pages - 1):
        writer.add_blank_page(9, 9)[NameObject("/Contents")] = writer.pages[0].raw_get("/Contents")
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()
