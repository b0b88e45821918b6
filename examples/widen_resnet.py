"""Widen a trained ResNet of torchvision, and go on training it on images of your own: another number of classes.

    python examples/widen_resnet.py photos/ --weights r18.pth --out photos_wide.safetensors

photos/ has a folder of images for each class. Without --weights torchvision downloads its own. The body starts as the
trained network's, half as wide again; the head is new.
"""

import argparse
from pathlib import Path

import torch
from torch import nn
from torchvision import datasets, models, transforms

import net2net

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="of one folder of images for each class")
    parser.add_argument("--arch", default="resnet18", choices=["resnet18", "resnet34", "resnet50"])
    parser.add_argument("--weights", type=Path, help="of the same architecture, 1000 classes (default: torchvision's)")
    parser.add_argument("--factor", type=float, default=1.5)
    parser.add_argument("--size", type=int, default=224, help="pixels (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=0.01)
    parser.add_argument("--out", type=Path, help="a .safetensors file for the student")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    crop = transforms.RandomResizedCrop(args.size, scale=(0.5, 1.0))
    steps = [crop, transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    try:
        images = datasets.ImageFolder(args.folder, transforms.Compose(steps))
        teacher = models.get_model(args.arch, weights=None if args.weights else "DEFAULT")
        if args.weights:
            teacher.load_state_dict(net2net.load_weights(args.weights))
    except (OSError, RuntimeError, net2net.GrowthError) as error:
        parser.exit(2, f"{str(error).splitlines()[0]}\n")
    loader = torch.utils.data.DataLoader(images, args.batch, shuffle=True)
    teacher.to(device, memory_format=torch.channels_last)

    examples = next(iter(loader))[0].to(device)
    student = net2net.widen(teacher, examples, args.factor, new_head=len(images.classes))
    print(net2net.summary(student, examples, teacher), "\n")

    optimizer = torch.optim.SGD(student.parameters(), lr=args.rate, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs * len(loader))
    for epoch in range(args.epochs):
        right, total = 0, 0
        student.train()
        for x, y in loader:
            scores = student(x.to(device))
            loss = nn.functional.cross_entropy(scores, y.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            right, total = right + int((scores.argmax(1).cpu() == y).sum()), total + len(y)
        print(f"epoch {epoch}: {100 * right / total:.1f} % of {total} training images, loss {loss:.3f}")
    if args.out:
        net2net.save_weights(args.out, student)
        print(f"wrote {args.out}: net2net.replay(net2net.load_record(…), {args.arch}()) rebuilds the student")


if __name__ == "__main__":
    main()
