"""A stand-in for buckets: objects in memory, which etils reaches through fsspec as it reaches gcsfs and s3fs."""

import contextlib
import io

import fsspec
import fsspec.config
from etils.epath import backend, gpath
from fsspec.registry import _registry

from flowguide import mirrors


class Refused(Exception):
    """As errors of gcsfs, it is no ``OSError``."""


class _Upload(io.BytesIO):
    """A stream whose content becomes an object when it is closed."""

    def __init__(self, bucket, name):
        super().__init__()
        self.bucket, self.name = bucket, name

    def close(self):
        if not self.closed:
            self.bucket.put(self.name, self.getvalue())
        super().close()


class Bucket(fsspec.AbstractFileSystem):
    """Has objects but no folders, no append and no rename; a write replaces an object when its stream is closed."""

    protocol = ("gs", "gcs")
    objects: dict[str, bytes] = {}  # noqa: RUF012
    writes: list[str] = []  # noqa: RUF012
    out_of_service = False

    def put(self, name, content):
        if not name.startswith("bucket/") or self.out_of_service:
            raise Refused(f"403 for\n{name}")
        self.objects[name] = content
        self.writes.append(name)

    def ls(self, path, detail=True, **options):
        name = str(self._strip_protocol(path)).strip("/")
        if name in self.objects:
            found = {name: {"name": name, "size": len(self.objects[name]), "type": "file"}}
        else:
            below = [key for key in self.objects if key.startswith(name + "/")]
            children = {f"{name}/{key[len(name) + 1 :].partition('/')[0]}" for key in below}
            found = {
                child: {"name": child, "size": len(self.objects[child]), "type": "file"}
                if child in self.objects
                else {"name": child, "size": 0, "type": "directory"}
                for child in sorted(children)
            }
        if not found:
            raise FileNotFoundError(path)
        return list(found.values()) if detail else list(found)

    def _open(self, path, mode="rb", **options):
        name = str(self._strip_protocol(path))
        if mode == "wb":
            return _Upload(self, name)
        if mode != "rb":
            raise NotImplementedError(f"mode {mode}")
        if name not in self.objects:
            raise FileNotFoundError(path)
        return io.BytesIO(self.objects[name])

    def _rm(self, path):
        self.objects.pop(str(self._strip_protocol(path)), None)  # also a folder, which is gone with its last object


class S3Bucket(Bucket):
    """The same under another scheme."""

    protocol = "s3"


@contextlib.contextmanager
def stand_in(monkeypatch):
    """Puts the stand-in in the place of gcsfs and s3fs, with an empty bucket named "bucket"; yields its objects."""

    def forget():
        backend._FileSystemSpecBackend._get_filesystem.cache_clear()
        gpath._is_tf_installed.cache_clear()
        mirrors.local_copy.cache_clear()
        Bucket.objects.clear()
        Bucket.writes.clear()

    forget()
    monkeypatch.setenv("EPATH_USE_TF", "0")
    monkeypatch.setattr(Bucket, "out_of_service", False)
    monkeypatch.setattr(fsspec.config, "conf", {})
    for scheme, kind in (("gs", Bucket), ("gcs", Bucket), ("s3", S3Bucket)):
        monkeypatch.setitem(_registry, scheme, kind)
    yield Bucket.objects
    forget()
