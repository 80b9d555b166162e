"""A bucket on this machine: an emulator of Google Cloud Storage, and what it lacks.

python -m tests.launch.storage PORT
"""

import sys
from http import HTTPStatus

from gcp_storage_emulator import server
from gcp_storage_emulator.handlers import objects

_download, _media_upload = objects.download, objects._media_upload


def _move(request, response, storage):
    """Renames an object, which gcsfs asks for first."""
    request.params["dest_bucket_name"] = request.params["bucket_name"]
    objects.copy(request, response, storage)
    storage.delete_file(request.params["bucket_name"], request.params["object_id"])


def _download_with_generation(request, response, storage):
    """Names the version that is read, by which TensorStore sees that it is a version at all."""
    _download(request, response, storage)
    if response.status is not HTTPStatus.NOT_FOUND:
        names = request.params["bucket_name"], request.params["object_id"]
        response["x-goog-generation"] = storage.get_file_obj(*names)["generation"]


def _upload_if_unchanged(request, response, storage):
    """Refuses to replace another version than the one named: TensorStore's lock."""
    wanted, bucket = request.query.get("ifGenerationMatch"), request.params["bucket_name"]
    found = storage.objects.get(bucket, {}).get(request.query["name"][0], {"generation": "0"})
    if wanted and wanted[0] != found["generation"]:
        response.status = HTTPStatus.PRECONDITION_FAILED
    else:
        _media_upload(request, response, storage)


def serve(port: int) -> None:
    """Serves an empty bucket, `gs://bucket`, until the process ends."""
    objects.download, objects._media_upload = _download_with_generation, _upload_if_unchanged
    route = r"/storage/v1/b/(?P<bucket_name>.+)/o/(?P<object_id>.+)/moveTo/o/(?P<dest_object_id>.+)"
    server.HANDLERS = ((route, {"POST": _move}), *server.HANDLERS)
    server.create_server("localhost", port, in_memory=True, default_bucket="bucket").run()


if __name__ == "__main__":
    serve(int(sys.argv[1]))
