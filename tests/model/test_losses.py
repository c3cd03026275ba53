"""The terms of the objective against hand arithmetic; their gradients; the centres, in one process and in two."""

import gc
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from multiattn.config import LossConfig
from multiattn.model.losses import (
    AdditiveMarginLoss,
    AlignmentUniformityLoss,
    ClassificationLoss,
    JointIndependenceLoss,
    RegionalIndependenceLoss,
    make_auxiliary,
    match_loss,
)
from pipeline import forked


def loss_by_loops(parts, centers, labels, rate, config):
    """Eqs. (3) and (4) as loops over samples, parts and pairs; returns the loss and the new centres."""
    batch, num_maps, _ = parts.shape
    means = [np.mean([parts[i, j] for i in range(batch)], axis=0) for j in range(num_maps)]
    centers = np.array([center - rate * (center - mean) for center, mean in zip(centers, means, strict=True)])
    intra = 0.0
    for i in range(batch):
        margin = config.intra_margin_fake if labels[i] == 1 else config.intra_margin_real
        for j in range(num_maps):
            intra += max(((parts[i, j] - centers[j]) ** 2).sum() - margin, 0.0)
    inter = 0.0
    for i in range(num_maps):
        for j in range(num_maps):
            if i != j:
                inter += max(config.inter_margin - ((centers[i] - centers[j]) ** 2).sum(), 0.0)
    return intra / (batch if config.reduction == "mean" else 1) + inter, centers


def unit_parts(batch, num_maps=4, features=6, seed=0, spread=0.3):
    rng = np.random.default_rng(seed)
    parts = rng.normal(size=(1, num_maps, features)) + spread * rng.normal(size=(batch, num_maps, features))
    return torch.tensor(parts / np.linalg.norm(parts, axis=-1, keepdims=True))


CASES = {
    "usual": (LossConfig(), 6, 4),
    "sum is Eq. (3) to the letter": (LossConfig(reduction="sum"), 6, 4),
    "one sample": (LossConfig(), 1, 4),
    "one map": (LossConfig(), 3, 1),
    "fast centres and wide margins": (LossConfig(center_rate=1.0, inter_margin=3.0, intra_margin_fake=0.3), 5, 3),
    "no margins": (LossConfig(inter_margin=0.0, intra_margin_real=0.0, intra_margin_fake=0.0), 4, 2),
}


@pytest.mark.parametrize(("config", "batch", "num_maps"), CASES.values(), ids=CASES.keys())
def test_loss_and_centres_equal_the_equations_over_several_steps(config, batch, num_maps):
    criterion = RegionalIndependenceLoss(num_maps, 6, config)
    centers, rate = np.zeros((num_maps, 6)), config.center_rate
    for step in range(3):
        parts = unit_parts(batch, num_maps, seed=step)
        labels = torch.arange(batch) % 2
        expected, centers = loss_by_loops(parts.numpy(), centers, labels.numpy(), rate, config)
        assert criterion(parts, labels).item() == pytest.approx(expected, abs=1e-5)
        np.testing.assert_allclose(criterion.centers.numpy(), centers, atol=1e-6)


def test_the_inter_class_term_has_a_gradient_to_the_parts():
    parts = unit_parts(4).requires_grad_()
    # Margins this wide switch the intra term off: what is left is the second sum of Eq. (3).
    config = LossConfig(intra_margin_real=4.0, intra_margin_fake=4.0)
    RegionalIndependenceLoss(4, 6, config)(parts, torch.tensor([0, 1, 0, 1])).backward()
    means = parts.detach().mean(0)
    centers = 0.05 * means
    # d/dV of sum over ordered pairs (m_out - |c_i - c_j|^2) with c = alpha mean(V): each pair counts twice.
    expected = torch.stack([-4 * 0.05 / 4 * sum(centers[i] - centers[j] for j in range(4)) for i in range(4)])
    assert expected.abs().max() > 1e-4
    for sample in parts.grad:
        torch.testing.assert_close(sample, expected, rtol=1e-5, atol=1e-9)


GRADIENT_CASES = {
    "mean": LossConfig(center_rate=0.3, inter_margin=2.0),
    "sum": LossConfig(reduction="sum", center_rate=0.3, inter_margin=2.0),
    "pushed fakes": LossConfig(intra_margin_fake=-0.8, center_rate=0.3, inter_margin=2.0),
    "joint": LossConfig(ril="joint", intra_margin_fake=-1.9, center_rate=0.3, inter_margin=2.0),
}


@pytest.mark.parametrize("config", GRADIENT_CASES.values(), ids=GRADIENT_CASES.keys())
def test_the_gradient_is_that_of_finite_differences(config):
    labels, start = torch.tensor([0, 1, 1]), unit_parts(1, 3, seed=9)[0]
    criterion = make_auxiliary(3, 6, config).double()

    def loss(parts):
        criterion.centers.copy_(start)  # each call moves them
        return criterion(parts, labels)

    assert torch.autograd.gradcheck(loss, (unit_parts(3, 3).requires_grad_(),))


@pytest.mark.parametrize(
    ("margin", "distance", "loss"),
    [(0.2, 0.5, 0.3), (0.2, 0.1, 0.0), (0.0, 0.5, 0.5), (-0.8, 0.0, 0.8), (-0.8, 0.3, 0.5), (-0.8, 0.9, 0.0)],
    ids=["pulled", "near enough", "no margin", "pushed from the centre", "pushed on", "far enough"],
)
def test_a_negative_margin_pushes_and_a_positive_one_pulls(margin, distance, loss):
    parts, centers, fake = torch.zeros(1, 1, 2), torch.zeros(1, 2), torch.tensor([1])
    parts[..., 0] = distance**0.5
    config = LossConfig(intra_margin_fake=margin)
    per_part = RegionalIndependenceLoss(1, 2, config)
    assert per_part.intra_terms(parts, centers, fake).item() == pytest.approx(loss, abs=1e-6)
    parts[..., 0] = distance
    joint = JointIndependenceLoss(1, 2, config).eval()
    assert joint(parts, fake).item() == pytest.approx(loss, abs=1e-6)


def test_the_joint_form_equals_numpy_over_several_steps():
    config = LossConfig(ril="joint", inter_margin=0.8, intra_margin_real=0.2, intra_margin_fake=-1.9)
    criterion, centers = JointIndependenceLoss(3, 6, config).double(), np.zeros((3, 6))
    labels = np.array([0, 1, 1, 0, 1])
    for step in range(3):
        parts = unit_parts(5, 3, seed=step).numpy()
        # The whole batch divides, though only real faces count.
        centers = centers + 0.05 * (parts - centers)[labels == 0].sum(axis=0) / 5
        distance = np.linalg.norm((parts - centers).reshape(5, -1), axis=1)
        intra = np.where(labels == 0, np.maximum(distance - 0.2, 0), np.maximum(1.9 - distance, 0)).mean()
        pairs = [np.linalg.norm(centers[j] - centers[k]) for j in range(3) for k in range(j + 1, 3)]
        inter = np.maximum(0.8 - np.array(pairs), 0).sum() / (3 * 0.05)
        assert inter > 0
        found = criterion(torch.tensor(parts), torch.tensor(labels)).item()
        assert found == pytest.approx(intra + inter, rel=1e-6)
        np.testing.assert_allclose(criterion.centers.numpy(), centers, atol=1e-7)


def test_following_moves_the_centres_as_a_loss_would():
    parts, labels = unit_parts(4), torch.tensor([0, 1, 0, 1])
    for kind in (RegionalIndependenceLoss, JointIndependenceLoss):
        one, other = kind(4, 6, LossConfig()), kind(4, 6, LossConfig())
        one(parts, labels)
        other.follow(parts, labels)
        assert one.centers.abs().max() > 0
        torch.testing.assert_close(one.centers, other.centers)


def test_the_margin_loss_is_cross_entropy_of_parts_with_a_margin():
    config = LossConfig(auxiliary="ams", ams_scale=8.0, ams_margin=0.3)
    criterion = AdditiveMarginLoss(3, 6, config).double()
    parts = unit_parts(5, 3)
    weight = criterion.weight.detach().numpy()
    weight = weight / np.linalg.norm(weight, axis=1, keepdims=True)
    terms = []
    for sample in parts.numpy():
        for j, part in enumerate(sample):
            logits = 8.0 * (weight @ part)
            logits[j] -= 8.0 * 0.3
            terms.append(np.log(np.exp(logits).sum()) - logits[j])
    assert criterion(parts, torch.zeros(5)).item() == pytest.approx(np.mean(terms), rel=1e-9)


def on_the_sphere(features, labels, alignment_weight=0.1, uniformity_weight=0.5):
    """Alignment and uniformity by loops over pairs, alpha = t = 2."""
    points = [row / np.linalg.norm(row) for row in features]
    pairs = [(i, j) for i in range(len(points)) for j in range(i)]
    squared = {pair: ((points[pair[0]] - points[pair[1]]) ** 2).sum() for pair in pairs}
    near = [squared[i, j] for i, j in pairs if labels[i] == labels[j]]
    spread = np.log(np.mean([np.exp(-2 * value) for value in squared.values()])) if pairs else 0.0
    return alignment_weight * (np.mean(near) if near else 0.0) + uniformity_weight * spread


@pytest.mark.parametrize(
    "labels",
    [
        pytest.param([0, 1, 1, 0, 1, 0], id="both classes"),
        pytest.param([1, 1, 1], id="one class absent"),
        pytest.param([0, 1], id="a pair of either class: nothing to align"),
        pytest.param([0, 0], id="a pair of one class"),
        pytest.param([1], id="one sample"),
        pytest.param([], id="none"),
    ],
)
def test_alignment_and_uniformity_equal_the_paper_s_means_over_pairs(labels):
    criterion = AlignmentUniformityLoss(LossConfig(auxiliary="align-uniform"))
    features = np.random.default_rng(2).normal(size=(len(labels), 5)) + [3.0, 0, 0, 0, 0]
    given = torch.tensor(features, requires_grad=True)
    value = criterion(given, torch.tensor(labels, dtype=torch.int64))
    assert value.item() == pytest.approx(on_the_sphere(features, labels), abs=1e-12)
    value.backward()
    assert torch.isfinite(given.grad).all()
    if len(labels) > 1:
        assert torch.autograd.gradcheck(criterion, (given, torch.tensor(labels)))
        scaled = criterion(given * torch.rand(len(labels), 1).double().add(0.5), torch.tensor(labels))
        assert scaled.item() == pytest.approx(value.item())  # of directions alone


def test_the_sphere_s_bounds_by_hand():
    only = {name: LossConfig(alignment_weight=a, uniformity_weight=u) for name, a, u in (("a", 1, 0), ("u", 0, 1))}
    opposite, labels = torch.tensor([[2.0, 0.0], [-5.0, 0.0]]), torch.tensor([1, 1])
    found = {name: AlignmentUniformityLoss(config)(opposite, labels).item() for name, config in only.items()}
    assert found == {"a": pytest.approx(4.0), "u": pytest.approx(-8.0)}
    same = torch.ones(3, 2, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = [AlignmentUniformityLoss(config)(same, torch.tensor([0, 0, 1])) for config in only.values()]
    assert [value.item() for value in values] == pytest.approx([0.0, 0.0], abs=1e-6)
    assert {value.dtype for value in values} == {torch.float32}


def test_the_match_loss_counts_every_part_but_the_degraded_one():
    parts = torch.zeros(2, 2, 3, requires_grad=True)
    degraded = torch.tensor([[[3.0, 4.0, 0.0], [1.0, 0.0, 0.0]], [[0.0, 0.0, 0.0], [0.0, 2.0, 0.0]]])
    value = match_loss(parts, degraded, torch.tensor([1, 0]))
    assert value.item() == pytest.approx((5.0 + 0.0 + 0.0 + 2.0) / 4)
    value.backward()
    assert torch.isfinite(parts.grad).all()
    torch.testing.assert_close(parts.grad[0, 0], torch.tensor([-0.6, -0.8, 0.0]) / 4)


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        pytest.param(LossConfig(), RegionalIndependenceLoss, id="paper"),
        pytest.param(LossConfig(ril="joint"), JointIndependenceLoss, id="release"),
        pytest.param(LossConfig(auxiliary="ams"), AdditiveMarginLoss, id="margin softmax"),
        pytest.param(LossConfig(auxiliary="align-uniform"), AlignmentUniformityLoss, id="on the unit sphere"),
        pytest.param(LossConfig(auxiliary="none"), type(None), id="none"),
        pytest.param(LossConfig(auxiliary_weight=0.0), type(None), id="weight 0"),
    ],
)
def test_the_settings_name_the_auxiliary_loss(config, kind):
    assert type(make_auxiliary(4, 6, config)) is kind


def test_evaluation_measures_against_the_stored_centres_and_leaves_them_alone():
    criterion = RegionalIndependenceLoss(4, 6, LossConfig())
    labels = torch.tensor([0, 1, 0])
    criterion(unit_parts(3), labels)
    stored = criterion.centers.clone()
    criterion.eval()
    parts = unit_parts(3, seed=5)
    value = criterion(parts, labels)
    assert torch.equal(criterion.centers, stored)
    expected, _ = loss_by_loops(parts.numpy(), stored.double().numpy(), labels.numpy(), 0.0, LossConfig())
    assert value.item() == pytest.approx(expected, abs=1e-5)


WIDE = {"intra_margin_real": 4.0, "intra_margin_fake": 4.0}
"""Margins that every part keeps: what pushes is the term between the centres."""


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(LossConfig(), id="per part"),
        pytest.param(LossConfig(reduction="sum"), id="a sum"),
        pytest.param(LossConfig(ril="joint", inter_margin=0.8, intra_margin_fake=-0.8), id="joint"),
        pytest.param(LossConfig(**WIDE), id="per part, centres alone"),
        pytest.param(LossConfig(ril="joint", inter_margin=0.8, **WIDE), id="joint, centres alone"),
    ],
)
@pytest.mark.parametrize("number", [2, 4])
def test_accumulated_batches_push_and_move_as_the_whole_batch_does(config, number):
    """By the projection on the whole batch's gradient, 1 where none is lost; and the centres, which must be the same,
    those moved by second views too."""
    whole, often = (make_auxiliary(4, 6, config) for _ in range(2))
    labels, share = torch.arange(32) % 2, 1 / number
    for step in range(3):
        parts, views = (unit_parts(32, seed=seed, spread=0.1).float() for seed in (step, step + 50))
        once, shared = (parts.clone().requires_grad_() for _ in range(2))
        whole(once, labels).backward()
        whole.follow(views, labels)
        for one, rows in enumerate(torch.arange(32).chunk(number)):
            often.begin_batch(share, is_first=one == 0)
            (share * often(shared[rows], labels[rows])).backward()
            often.follow(views[rows], labels[rows])
        torch.testing.assert_close(often.centers, whole.centers, atol=1e-6, rtol=1e-5)
        projection = (shared.grad * once.grad).sum() / once.grad.square().sum()
        assert projection.item() == pytest.approx(1, abs=0.1), step


def test_the_rate_decays_once_an_epoch_and_travels_in_the_state():
    criterion = RegionalIndependenceLoss(2, 3, LossConfig())
    for epoch in (5, 2):  # whatever it was before
        criterion.set_epoch(epoch)
    assert criterion.center_rate.item() == pytest.approx(0.05 * 0.81)
    other = RegionalIndependenceLoss(2, 3, LossConfig())
    other.load_state_dict(criterion.state_dict())
    assert other.center_rate.item() == pytest.approx(0.05 * 0.81)


def test_a_second_backward_pass_over_several_steps_does_not_trip_over_the_stored_centres():
    criterion = RegionalIndependenceLoss(2, 6, LossConfig())
    parts, labels = unit_parts(3, 2).requires_grad_(), torch.tensor([0, 1, 0])
    first, second = criterion(parts, labels), criterion(parts, labels)
    (first + second).backward()
    assert not criterion.centers.requires_grad
    assert torch.isfinite(parts.grad).all()


def test_the_loss_is_float32_under_autocast():
    parts, labels = unit_parts(4).bfloat16(), torch.tensor([0, 1, 0, 1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = RegionalIndependenceLoss(4, 6, LossConfig())(parts, labels)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, RegionalIndependenceLoss(4, 6, LossConfig())(parts.float(), labels))


@pytest.mark.parametrize(
    ("parts", "labels", "message"),
    [
        (torch.zeros(0, 4, 6), torch.zeros(0), "empty batch"),
        (torch.zeros(2, 3, 6), torch.zeros(2), r"expected \(B, 4, 6\), found \(2, 3, 6\)"),
        (torch.zeros(2, 4, 6), torch.zeros(3), r"labels: expected \(2,\), found \(3,\)"),
    ],
    ids=["empty", "other number of maps", "other number of labels"],
)
def test_what_does_not_fit_is_refused(parts, labels, message):
    with pytest.raises(ValueError, match=message):
        RegionalIndependenceLoss(4, 6, LossConfig())(parts, labels)


LOGITS = torch.tensor([[1.0, -1.0], [0.5, 2.0], [0.0, 0.25]])
NEGATIVE_LOGS = -np.log(np.exp(LOGITS.numpy()) / np.exp(LOGITS.numpy()).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_label_smoothing_asks_for_a_share_of_both_classes_in_float32(smoothing):
    """By hand: 1 - s / 2 of the label's class and s / 2 of the other."""
    labels = np.array([0, 1, 0])
    own, other = NEGATIVE_LOGS[np.arange(3), labels], NEGATIVE_LOGS[np.arange(3), 1 - labels]
    expected = ((1 - smoothing / 2) * own + smoothing / 2 * other).mean()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = ClassificationLoss(label_smoothing=smoothing)(LOGITS.bfloat16(), torch.from_numpy(labels))
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "labels", [[0, 1, 0], [1, 1, 1]], ids=["both classes", "one class: its weight does not cancel"]
)
def test_a_samples_share_depends_on_its_class_and_not_on_its_batch(labels):
    labels = np.array(labels)
    expected = (np.where(labels == 1, 0.25, 3.0) * NEGATIVE_LOGS[np.arange(3), labels]).mean()
    loss = ClassificationLoss(class_weights=(3.0, 0.25))
    assert loss(LOGITS, torch.from_numpy(labels)).item() == pytest.approx(expected, abs=1e-6)
    assert loss.state_dict() == {}, "weights of the data are no part of a checkpoint"


NUM_MAPS, FEATURES, STEPS = 3, 5, 3
SHARES = {
    "mean, even": ("per-part", "mean", 4),
    "sum, even": ("per-part", "sum", 4),
    "mean, uneven": ("per-part", "mean", 5),
    "mean, one rank empty": ("per-part", "mean", 8),
    "joint, even": ("joint", "mean", 4),
    "joint, uneven": ("joint", "mean", 5),
    "on the sphere, even": ("align-uniform", "mean", 4),
    "on the sphere, uneven": ("align-uniform", "mean", 5),
    "on the sphere, one rank empty": ("align-uniform", "mean", 8),
}


class SmallNetwork(nn.Module):
    """A small network with unit rows, as BAP gives them."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(6, NUM_MAPS * FEATURES, generator=generator, dtype=torch.float64))

    def forward(self, inputs):
        return nn.functional.normalize((inputs @ self.weight).view(-1, NUM_MAPS, FEATURES), dim=-1)


def batches():
    generator = torch.Generator().manual_seed(4)
    labels = torch.tensor([0, 1, 0, 1, 1, 0, 1, 0])
    return [(torch.randn(8, 6, generator=generator, dtype=torch.float64), labels) for _ in range(STEPS)]


def train(module, share, form, reduction):
    """Losses, gradients and centres of a few steps over a share of each batch."""
    is_sphere = form == "align-uniform"
    name = {"auxiliary": form} if is_sphere else {"ril": form, "reduction": reduction}
    config = LossConfig(**name, center_rate=0.4, inter_margin=2.0, intra_margin_fake=-2.5)
    criterion = make_auxiliary(NUM_MAPS, FEATURES, config).double()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    history = []
    for inputs, labels in batches():
        optimizer.zero_grad()
        parts = module(inputs[share])
        loss = criterion(parts.flatten(1) if is_sphere else parts, labels[share])
        loss.backward()
        centers = torch.zeros(0) if is_sphere else criterion.centers.clone()
        history.append((loss.detach(), next(module.parameters()).grad.clone(), centers))
        optimizer.step()
    return history


def train_share(rank: int, form: str, reduction: str, first: int):
    """This rank's history; its DistributedDataParallel, which holds the process group, is gone on return."""
    share = slice(0, first) if rank == 0 else slice(first, 8)
    return train(nn.parallel.DistributedDataParallel(SmallNetwork()), share, form, reduction)


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    for name, (form, reduction, first) in SHARES.items():
        torch.save(train_share(rank, form, reduction, first), f"{folder}/{name}-{rank}.pt")
    reduce, sizes = dist.all_reduce, []
    dist.all_reduce = lambda tensor: (sizes.append(tensor.numel()), reduce(tensor))
    train(SmallNetwork(), slice(4 * rank, 4 * rank + 4), "per-part", "mean")
    torch.save(sizes, f"{folder}/sizes-{rank}.pt")
    # Gloo's threads may still hold tensors when the interpreter shuts down, and then abort it (2 runs of 17 did): wait
    # until both ranks are through, drop every user of the group before the group, and skip the shutdown.
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two_processes")
    forked()
    mp.start_processes(work, args=(str(folder),), nprocs=2, start_method="forkserver")
    return folder


def test_the_regional_loss_asks_the_other_ranks_once_forward_and_once_backward(results):
    for rank in range(2):
        sizes = torch.load(results / f"sizes-{rank}.pt", weights_only=True)
        assert sizes == [NUM_MAPS * FEATURES + 1] * (2 * STEPS)


@pytest.mark.parametrize("name", SHARES)
def test_loss_gradients_and_centres_equal_those_of_one_process(results, name):
    form, reduction, _ = SHARES[name]
    ranks = [torch.load(results / f"{name}-{rank}.pt", weights_only=True) for rank in range(2)]
    alone = train(SmallNetwork(), slice(None), form, reduction)
    for step, (loss, gradient, centers) in enumerate(alone):
        first, second = ranks[0][step], ranks[1][step]
        torch.testing.assert_close((first[0] + second[0]) / 2, loss)
        assert gradient.abs().max() > 1e-3
        for found in (first, second):
            torch.testing.assert_close(found[1], gradient)
            torch.testing.assert_close(found[2], centers)
