"""The services that serving is compared with, each as its documentation shows one for images.

    uvicorn --factory benchmarks.peers:plain            # FastAPI alone
    python -m benchmarks.peers 8000                     # LitServe
    bentoml serve benchmarks.peers:Classifier           # BentoML

PEER_WEIGHTS names a file with a state dict of ResNet-18. All run it in float32 on torchvision's
transforms, which do as the project's decoder does: the centre square at 224 px.

Where the settings come from: FastAPI's page on files; LitServe's own comparison of ResNets with
FastAPI (tests/parity_fastapi: batches of 8, 10 ms, two workers, decoding in threads, base64 in
JSON); BentoML's example BentoResnet (a batchable method on a list of images).
"""

import base64
import io
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import bentoml
import litserve
import torch
from fastapi import FastAPI, UploadFile
from PIL import Image
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.transforms import v2

WEIGHTS = "PEER_WEIGHTS"  # the variable
SIZE = 224  # px
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

transform = v2.Compose(
    [
        v2.Resize(SIZE),
        v2.CenterCrop(SIZE),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(MEAN, STD),
    ]
)


def load_network() -> nn.Module:
    """The network, as all have it."""
    weights = torch.load(os.environ[WEIGHTS], weights_only=True)
    network: nn.Module = resnet18(num_classes=len(weights["fc.bias"]))
    network.load_state_dict(weights)
    return network.eval()


def answers(network: nn.Module, images: Tensor) -> list[dict[str, Any]]:
    """The class of each image, float32 (N, 3, H, W), and its probability."""
    with torch.inference_mode():
        confidence, predicted = torch.softmax(network(images), dim=1).max(dim=1)
    return [
        {"class": number, "confidence": share}
        for number, share in zip(predicted.tolist(), confidence.tolist(), strict=True)
    ]


def plain() -> FastAPI:
    """FastAPI: a function for each request, in one of its threads."""
    app, network = FastAPI(), load_network()

    @app.post("/predict")
    def predict(file: UploadFile) -> dict[str, Any]:
        image = Image.open(file.file).convert("RGB")
        return answers(network, transform(image).unsqueeze(0))[0]

    return app


class ClassifierAPI(litserve.LitAPI):  # type: ignore[misc]
    """LitServe: requests are put into batches, which worker processes take."""

    def setup(self, device: str) -> None:
        self.network = load_network().to(device)
        self.pool = ThreadPoolExecutor(os.cpu_count())

    def decode_request(self, request: dict[str, str]) -> str:
        return request["image_data"]

    def batch(self, inputs: list[str]) -> Tensor:
        return torch.stack(list(self.pool.map(self._decode, inputs)))

    def _decode(self, data: str) -> Tensor:
        image: Tensor = transform(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
        return image

    def predict(self, x: Tensor) -> list[dict[str, Any]]:
        return answers(self.network, x)

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        return output


@bentoml.service(traffic={"timeout": 300, "concurrency": 256})
class Classifier:
    """BentoML: batches with a size and a wait that follow the traffic."""

    def __init__(self) -> None:
        self.network = load_network()

    @bentoml.api(batchable=True)  # type: ignore[untyped-decorator]
    def classify(self, images: list[Image.Image]) -> list[dict[str, Any]]:
        return answers(self.network, torch.stack([transform(image.convert("RGB")) for image in images]))


def main() -> None:
    """Run LitServe, which has no command for it."""
    api = ClassifierAPI(max_batch_size=8, batch_timeout=0.01)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=2, timeout=100)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    main()
