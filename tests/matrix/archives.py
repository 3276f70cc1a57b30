"""The committed form of the models: files in a zip archive, their weights in a pool that the models of a backbone share.

In an archive, an embedded weight of 256 bytes or more is external data of `weights/<backbone>`: each distinct weight is
stored once. Weights that lie in files of their own in the model itself are left there.
"""

import zipfile

import onnx
from onnx import TensorProto

LEAST = 256


class Pool:
    """Distinct weights, one behind the other."""

    def __init__(self, name):
        self.name, self.places, self.bytes = name, {}, bytearray()

    def take(self, tensor):
        data = tensor.raw_data
        if len(data) < LEAST or tensor.data_location == TensorProto.EXTERNAL:
            return
        if data not in self.places:
            self.places[data] = len(self.bytes)
            self.bytes += data
        place = {"location": f"weights/{self.name}", "offset": self.places[data], "length": len(data)}
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))

    def write(self, folder):
        write_zip(folder / f"{self.name}.zip", {self.name: bytes(self.bytes)})


def write_model(folder, pool, path):
    """One model's files, its weights put into the pool."""
    files = {}
    for file in sorted(folder.iterdir()):
        if file.suffix == ".onnx":
            proto = onnx.load(file, load_external_data=False)
            for tensor in proto.graph.initializer:
                pool.take(tensor)
            files[file.name] = proto.SerializeToString(deterministic=True)
        else:
            files[file.name] = file.read_bytes()
    write_zip(path, files)


def write_zip(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name)  # dated 1980: the same bytes each time
            archive.writestr(entry, data, zipfile.ZIP_DEFLATED, compresslevel=9)
