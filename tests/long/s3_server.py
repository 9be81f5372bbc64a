"""
A server that speaks S3, on a port that it prints: moto, made to do three things that S3 does.

It lists the CRC-32 of each part, refuses a part whose bytes are not of the CRC-32 sent with it, and says NoSuchUpload of
a multipart upload that is gone, where moto fails within.
"""

from __future__ import annotations

import base64
import logging
import re
import threading
import zlib

from moto.moto_server.threaded_moto_server import ThreadedMotoServer
from moto.s3.exceptions import NoSuchUpload, S3ClientError
from moto.s3.models import S3Backend
from moto.s3.responses import S3Response


class BadDigestError(S3ClientError):
    code = "BadDigest"


def crc32(data):
    return base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()


def knowing(call):
    def checked(self, bucket_name, multipart_id, *rest):
        if multipart_id not in self.get_bucket(bucket_name).multiparts:
            raise NoSuchUpload(multipart_id)
        return call(self, bucket_name, multipart_id, *rest)

    return checked


def verifying(upload_part):
    def verified(self):
        if self.headers.get("x-amz-checksum-crc32", crc32(self.body)) != crc32(self.body):
            raise BadDigestError("The CRC-32 is not that of the bytes.")
        return upload_part(self)

    return verified


def telling(list_parts):
    def told(self):
        status, headers, body = list_parts(self)
        parts = self.backend.get_bucket(self.bucket_name).multiparts[self._get_param("uploadId")].parts

        def with_crc32(number):
            return f"{number[0]}<ChecksumCRC32>{crc32(parts[int(number[1])].value)}</ChecksumCRC32>"

        return status, headers, re.sub(r"<PartNumber>(\d+)</PartNumber>", with_crc32, body)

    return told


if __name__ == "__main__":
    logging.disable()
    for name in ("upload_part", "complete_multipart_upload"):
        setattr(S3Backend, name, knowing(getattr(S3Backend, name)))
    S3Response.upload_part = verifying(S3Response.upload_part)
    S3Response.list_parts = telling(S3Response.list_parts)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    print(server.get_host_and_port()[1], flush=True)
    threading.Event().wait()
