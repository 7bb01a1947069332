"""The probe of a block against batch norm, softmax and Adam written out in NumPy, and its choice of rate."""

import numpy as np
import pytest
import torch

from avssl.errors import EvaluationError
from avssl.evaluate import labelled as labelled_module
from avssl.evaluate.block_probe import block_probe, epoch_batches, make_head
from avssl.evaluate.labelled import LabelledClips


def _clips(samples=60, each=2, dims=8, classes=6, spread=1.0, seed=0, dtype=np.float32):
    generator = np.random.default_rng(seed)
    classes_of = np.repeat(np.arange(samples) % classes, each)
    centres = np.random.default_rng(99).normal(size=(classes, dims))
    features = 5 + 3 * (centres[classes_of] + spread * generator.normal(size=(samples * each, dims)))
    names = np.array([f"class {i}" for i in range(classes)])
    return LabelledClips(features.astype(dtype), np.repeat(np.arange(samples) * 2, each), names[classes_of])


def _softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def _trained_by_hand(x, y, num_classes, rate, epochs, batch_size, seed):
    """Function from features to probabilities, after Adam on batch norm and a linear layer, in float64."""
    head = make_head(x.shape[1], num_classes, seed)
    parts = [head[0].weight, head[0].bias, head[1].weight, head[1].bias]
    g, b, w, c = values = [part.detach().double().numpy().copy() for part in parts]
    first, second = [np.zeros_like(v) for v in values], [np.zeros_like(v) for v in values]
    mean, var, step = np.zeros(x.shape[1]), np.ones(x.shape[1]), 0
    for epoch in range(epochs):
        lr = rate * 0.1 ** ((epoch >= epochs / 2) + (epoch >= epochs * 3 / 4))
        for batch in epoch_batches(len(x), batch_size, seed, epoch):
            n, xb = len(batch), x[batch]
            mu, s2 = xb.mean(axis=0), xb.var(axis=0)
            mean, var = 0.9 * mean + 0.1 * mu, 0.9 * var + 0.1 * s2 * n / (n - 1)
            hat = (xb - mu) / np.sqrt(s2 + 1e-5)
            error = _softmax((hat * g + b) @ w.T + c)
            error[np.arange(n), y[batch]] -= 1
            error /= n
            back = error @ w
            gradients = [(back * hat).sum(0), back.sum(0), error.T @ (hat * g + b), error.sum(0)]
            step += 1
            for i, gradient in enumerate(gradients):
                first[i] = 0.9 * first[i] + 0.1 * gradient
                second[i] = 0.999 * second[i] + 0.001 * gradient**2
                away = np.sqrt(second[i] / (1 - 0.999**step)) + 1e-8
                values[i] -= lr * first[i] / (1 - 0.9**step) / away
    return lambda z: _softmax(((z - mean) / np.sqrt(var + 1e-5) * g + b) @ w.T + c)


def _judged_by_hand(probabilities, clips, true):
    per_sample = np.array([probabilities[clips.rows == row].mean(axis=0) for row in clips.samples])
    own = np.array([true[clips.rows == row][0] for row in clips.samples])
    ranks = np.array([np.sum(p > p[c]) for p, c in zip(per_sample, own, strict=True)])
    return per_sample.argmax(axis=1), np.mean(ranks == 0), np.mean(ranks < 5)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_probe_equals_batch_norm_softmax_and_adam_by_hand(dtype):
    train, test = _clips(dtype=dtype), _clips(seed=1, dtype=dtype)
    numbers = {name: i for i, name in enumerate(sorted(set(train.labels)))}
    y, true = (np.array([numbers[label] for label in clips.labels]) for clips in (train, test))
    predict = _trained_by_hand(np.asarray(train.features, float), y, 6, 1e-2, 8, 25, 3)
    probabilities = predict(np.asarray(test.features, float))
    predicted, accuracy, top5 = _judged_by_hand(probabilities, test, true)
    assert 0.3 < accuracy < top5 < 1
    result = block_probe(train, test, learning_rates=[1e-2], epochs=8, batch_size=25, seed=3)
    assert result.predictions.predicted.tolist() == predicted.tolist()
    assert result.predictions.rows.tolist() == test.samples.tolist()
    assert (result.accuracy, result.top5) == pytest.approx((accuracy, top5))
    assert result.clip_accuracy == pytest.approx(np.mean(probabilities.argmax(axis=1) == true))
    assert (result.num_train, result.num_train_clips, result.validation) == (60, 120, {})


def test_rate_is_the_best_on_samples_held_from_training():
    train, test = _clips(spread=0.7), _clips(spread=0.7, seed=1)
    result = block_probe(train, test, learning_rates=[1e-1, 1e-5, 1e-2], batch_size=25, epochs=30)
    assert set(result.validation) == {1e-5, 1e-2, 1e-1}
    best = max(result.validation, key=lambda rate: (result.validation[rate], -rate))
    assert result.learning_rate == best != 1e-5
    assert result.validation[1e-5] < result.validation[best]
    alone = block_probe(train, test, learning_rates=[best], batch_size=25, epochs=30)
    assert alone.predictions.predicted.tolist() == result.predictions.predicted.tolist()
    # All clips of a sample are on one side: of what was held, 12 of 60 samples, nothing was seen.
    shares = {round(value * 12, 6) for value in result.validation.values()}
    assert shares <= set(range(13))


def test_test_samples_choose_nothing_and_statistics_are_those_of_training():
    train, test = _clips(), _clips(seed=1)
    result = block_probe(train, test, batch_size=25, epochs=40)
    moved = LabelledClips(test.features, test.rows, np.roll(test.labels, 2))
    other = block_probe(train, moved, batch_size=25, epochs=40)
    assert (other.validation, other.learning_rate) == (result.validation, result.learning_rate)
    assert other.predictions.predicted.tolist() == result.predictions.predicted.tolist()
    assert other.accuracy != result.accuracy
    one = test.of(test.samples[7:8])
    lone = block_probe(train, one, batch_size=25, epochs=40)
    assert lone.predictions.predicted[0] == result.predictions.predicted[7]


def test_separable_classes_are_found_and_noise_is_at_chance():
    assert block_probe(_clips(spread=0.1), _clips(spread=0.1, seed=1)).accuracy == 1.0
    train = _clips(120)
    labels = np.repeat(np.random.default_rng(0).permutation(train.sample_labels), 2)
    noise = block_probe(LabelledClips(train.features, train.rows, labels), _clips(120, seed=1), epochs=60)
    assert noise.accuracy < 0.35


def test_clips_are_read_in_blocks_and_batches_are_of_one_size(monkeypatch):
    train, test = _clips(), _clips(seed=1)
    whole = block_probe(train, test, epochs=20)
    monkeypatch.setattr(labelled_module, "BLOCK_CLIPS", 7)
    again = block_probe(train, test, epochs=20)
    assert again.predictions.predicted.tolist() == whole.predictions.predicted.tolist()
    for clips in (129, 256, 257, 3):
        batches = epoch_batches(clips, 128, 0, 5)
        sizes = [len(batch) for batch in batches]
        assert max(sizes) <= 128
        assert max(sizes) - min(sizes) <= 1
        assert sorted(np.concatenate(batches)) == list(range(clips))


@pytest.mark.parametrize(("samples", "batch_size", "epochs"), [(60, 120, 1000), (60, 2, 17), (60, 50, 334)])
def test_small_data_get_epochs_enough_for_a_thousand_steps(samples, batch_size, epochs):
    train = _clips(samples)
    assert block_probe(train, train, learning_rates=[1e-2], batch_size=batch_size).epochs == epochs


def test_generator_of_the_program_is_left_alone_and_progress_is_told():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    seen = []
    block_probe(_clips(), _clips(), epochs=2, progress=lambda done, total: seen.append((done, total)))
    assert torch.equal(torch.rand(3), expected)
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize(
    "wrong",
    [
        {"learning_rates": []},
        {"learning_rates": [-1.0]},
        {"epochs": 0},
        {"batch_size": 1},
        {"weight_decay": -1},
    ],
)
def test_wrong_numbers_are_named(wrong):
    with pytest.raises(EvaluationError, match="must be rates > 0, epochs >= 1, batch_size >= 2"):
        block_probe(_clips(), _clips(), **wrong)


def test_features_that_are_not_finite_are_named():
    train = _clips()
    train.features[9, 3] = np.inf
    with pytest.raises(EvaluationError, match=r"hold NaN or infinity \(rows 8\)"):
        block_probe(train, _clips(), learning_rates=[1e-2])
