"""Make the digits samples: train a ResNet and a vision transformer on scikit-learn's digits and export both.

python samples/digits/train.py
"""

import argparse
import json
import platform
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import sklearn
import torch
from models import ResNet, VisionTransformer
from onnxscript import optimizer
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional

HERE = Path(__file__).parent
TEST_IMAGES = 540
CALIBRATION_IMAGES = 256
LARGEST_DIFFERENCE = 1e-4


def augmented(images: Tensor) -> Tensor:
    """Each image turned by up to 15 degrees, scaled by up to 15 %, moved by up to a pixel, with noise added."""
    count = len(images)
    angle = (torch.rand(count) * 2 - 1) * 0.26
    scale = 1 + (torch.rand(count) * 2 - 1) * 0.15
    move = (torch.rand(count, 2) * 2 - 1) * 0.25
    cos, sin = angle.cos() * scale, angle.sin() * scale
    affine = torch.stack((cos, -sin, move[:, 0], sin, cos, move[:, 1]), 1).view(count, 2, 3)
    grid = functional.affine_grid(affine, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False) + torch.randn_like(images) * 0.05


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int, learning_rate: float) -> None:
    batch = 64
    steps = epochs * (len(images) // batch)
    descent = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(descent, learning_rate, total_steps=steps)
    model.train()
    for epoch in range(epochs):
        order = torch.randperm(len(images))
        for chosen in order[: len(images) // batch * batch].view(-1, batch):
            logits = model(augmented(images[chosen]))
            loss = functional.cross_entropy(logits, labels[chosen], label_smoothing=0.05)
            descent.zero_grad()
            loss.backward()
            descent.step()
            schedule.step()
        if epoch % 20 == 19:
            print(f"epoch {epoch + 1} loss {loss.item():.3f}", flush=True)
    model.eval()


def export(model: nn.Module, path: Path) -> None:
    """Write `model`; a ResNet keeps its BatchNormalization nodes, which the exporter's optimizer would fold away."""
    keep_batch_norm = isinstance(model, ResNet)
    program = torch.onnx.export(
        model,
        (torch.zeros(2, 1, 8, 8),),
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        optimize=not keep_batch_norm,
    )
    if keep_batch_norm:
        optimizer.fold_constants(program.model)
        optimizer.remove_unused_nodes(program.model)
    proto = program.model_proto
    # The exporter records paths and stack traces of the Python source; the file shall not hold them.
    graph = proto.graph
    del proto.metadata_props[:], graph.metadata_props[:]
    for part in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        kept = [p for p in part.metadata_props if p.key == "namespace"]
        del part.metadata_props[:]
        part.metadata_props.extend(kept)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)


def measure(model: nn.Module, path: Path, images: Tensor, labels: Tensor) -> dict[str, float]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    logits = session.run(["logits"], {"image": images.numpy()})[0]
    with torch.no_grad():
        difference = float(np.abs(logits - model(images).numpy()).max())
    assert difference <= LARGEST_DIFFERENCE, f"{path.name}: onnxruntime differs from PyTorch by {difference:.2g}"
    return {
        "accuracy": float((logits.argmax(1) == labels.numpy()).mean()),
        "size_bytes": path.stat().st_size,
        "parameters": sum(p.numel() for p in model.parameters()),
        "largest_difference_from_torch": difference,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the files written")
    parser.add_argument("--epochs", type=int, default=100, help="the transformer trains for twice as many")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)[:, None]
    split = train_test_split(images, digits.target, test_size=TEST_IMAGES, random_state=0, stratify=digits.target)
    train_images, test_images, train_labels, test_labels = map(torch.from_numpy, split)
    np.savez_compressed(arguments.out / "test.npz", image=test_images.numpy(), labels=test_labels.numpy())
    np.savez_compressed(arguments.out / "calibration.npz", image=train_images[:CALIBRATION_IMAGES].numpy())
    record: dict[str, object] = {"test_images": TEST_IMAGES, "calibration_images": CALIBRATION_IMAGES}
    epochs = arguments.epochs
    plan = (("resnet", ResNet(), epochs, 3e-3), ("vit", VisionTransformer(), 2 * epochs, 2e-3))
    for name, model, model_epochs, learning_rate in plan:
        train(model, train_images, train_labels, model_epochs, learning_rate)
        path = arguments.out / f"{name}.onnx"
        export(model, path)
        record[name] = measure(model, path, test_images, test_labels)
        print(name, record[name])
    record["versions"] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
        "scikit-learn": sklearn.__version__,
    }
    record["date"] = datetime.now(UTC).date().isoformat()
    (arguments.out / "float.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
