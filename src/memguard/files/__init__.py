"""
Files put together without loading them.

Rooms: uploads (``_store``, ``_upload``, ``_chunk``), their journal (``_journal``) and running checksum (``_prefix``),
the assembly (``_assemble``), copying (``_copying``), publishing (``_publishing``, ``_s3``, ``_multipart``), sending
ahead (``_sending``), checksums (``_checksums``), and the page cache (``_caching``).
"""

from memguard.files._assemble import AssembledFile, assemble
from memguard.files._s3 import AssembledObject, S3Target
from memguard.files._store import UploadStatistics, UploadStore
from memguard.files._upload import Upload

__all__ = [
    "AssembledFile",
    "AssembledObject",
    "S3Target",
    "Upload",
    "UploadStatistics",
    "UploadStore",
    "assemble",
]
