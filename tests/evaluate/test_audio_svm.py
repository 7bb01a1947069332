"""The linear machines against scikit-learn by hand, one class at a time, and where the answer is known."""

import numpy as np
import pytest

from avssl.data import Manifest, Sample
from avssl.errors import EvaluationError
from avssl.evaluate import audio_svm as svm_module
from avssl.evaluate.audio_svm import Fold, audio_svm, folds_of
from avssl.evaluate.labelled import LabelledClips


def _clips(samples=60, each=3, dims=12, classes=4, spread=2.0, seed=0, dtype=np.float32):
    """Clips around the centre of their class; rows are not consecutive."""
    generator = np.random.default_rng(seed)
    rows = np.repeat(2 * np.arange(samples), each)
    classes_of = np.repeat(generator.permutation(np.arange(samples) % classes), each)
    centres = np.random.default_rng(99).normal(size=(classes, dims)) * np.linspace(0.1, 30, dims)
    noise = spread * generator.normal(size=(len(rows), dims)) * np.linspace(0.1, 30, dims)
    return LabelledClips(
        (centres[classes_of] + noise).astype(dtype), rows, np.array(list("abcdefgh"))[classes_of]
    )


def _fold(clips, start=0.75):
    cut = int(start * len(clips.samples))
    return Fold("test", clips.samples[:cut], clips.samples[cut:])


def _by_hand(clips, train, test, strength):
    """Accuracy of one machine a class, scores added up file by file."""
    from sklearn.svm import LinearSVC

    x = np.asarray(clips.features[:], dtype=np.float64)
    fit = np.isin(clips.rows, train)
    mean, std = x[fit].mean(axis=0), x[fit].std(axis=0) + 0.01
    x = (x - mean) / std
    names = sorted(set(clips.labels[fit]))
    machines = [
        LinearSVC(C=strength, loss="hinge", tol=1e-4, max_iter=200, random_state=0).fit(
            x[fit], clips.labels[fit] == name
        )
        for name in names
    ]
    hits = []
    for row in test:
        mine = clips.rows == row
        scores = [machine.decision_function(x[mine]).mean() for machine in machines]
        hits.append(names[int(np.argmax(scores))] == clips.labels[mine][0])
    return float(np.mean(hits))


@pytest.mark.filterwarnings("ignore:Liblinear failed to converge")
@pytest.mark.parametrize("strength", [0.01, 10.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_svm_equals_machines_fitted_one_class_at_a_time(strength, dtype):
    clips = _clips(dtype=dtype)
    fold = _fold(clips)
    expected = _by_hand(clips, fold.train, fold.test, strength)
    assert 0.3 < expected < 1
    result = audio_svm(clips, [fold], strengths=[strength])
    assert result.accuracy == pytest.approx(expected)
    (one,) = result.folds
    assert (one.strength, one.validation) == (strength, {})
    assert (one.num_train, one.num_train_clips) == (45, 135)
    assert one.predictions.classes == list("abcd")
    assert one.predictions.rows.tolist() == fold.test.tolist()
    assert one.predictions.accuracy == pytest.approx(expected)


@pytest.mark.filterwarnings("ignore:Liblinear failed to converge")
def test_strength_is_the_best_on_the_validation_samples_of_the_fold():
    chosen = set()
    for seed in range(4):
        clips = _clips(spread=1.0 + seed, dims=30, seed=seed)
        train, test, held = clips.samples[:45], clips.samples[45:], clips.samples[30:45]
        accuracy = {c: _by_hand(clips, clips.samples[:30], held, c) for c in (0.0001, 0.01, 1.0)}
        best = max(accuracy, key=lambda c: (accuracy[c], -c))
        (one,) = audio_svm(clips, [Fold("x", train, test, held)], strengths=[1.0, 0.0001, 0.01]).folds
        assert one.validation == pytest.approx(accuracy)
        assert one.strength == best
        assert one.predictions.accuracy == pytest.approx(_by_hand(clips, train, test, best))
        chosen.add(best)
    assert len(chosen) > 1


def test_test_samples_choose_nothing():
    clips = _clips(spread=3.0)
    fold = _fold(clips)
    labels, is_test = clips.labels.copy(), np.isin(clips.rows, fold.test)
    labels[is_test] = [dict(zip("abcd", "bcda", strict=True))[label] for label in labels[is_test]]
    features = np.array(clips.features)
    right = audio_svm(clips, [fold]).folds[0]
    wrong = audio_svm(LabelledClips(features, clips.rows, labels), [fold]).folds[0]
    assert (right.strength, right.validation) == (wrong.strength, wrong.validation)
    assert right.predictions.predicted.tolist() == wrong.predictions.predicted.tolist()
    assert right.predictions.accuracy != wrong.predictions.accuracy
    features[is_test] *= 100
    assert (
        audio_svm(LabelledClips(features, clips.rows, clips.labels), [fold]).folds[0].validation
        == right.validation
    )


def test_file_is_judged_by_the_sum_of_its_clips_scores():
    train = np.array([[-1.0], [1.0]] * 10)
    test = np.array([[-0.2], [-0.2], [3.0]])  # two of three clips say a, but the third loudly b
    clips = LabelledClips(
        np.concatenate([train, test]), np.array([*range(20), 50, 50, 50]), np.array([*"ab" * 10, *"bbb"])
    )
    fold = Fold("x", np.arange(20), np.array([50]))
    assert audio_svm(clips, [fold]).accuracy == 1.0


def test_separable_classes_are_found_and_noise_is_at_chance():
    clips = _clips(spread=0.1, classes=8, samples=80)
    assert audio_svm(clips, [_fold(clips)]).accuracy == 1.0
    noise = np.random.default_rng(0).normal(size=(len(clips), 12))
    assert audio_svm(LabelledClips(noise, clips.rows, clips.labels), [_fold(clips)]).accuracy < 0.4


def test_folds_are_averaged_and_samples_that_could_not_be_read_stay_out():
    clips = _clips()
    thirds = np.array_split(np.append(clips.samples, 999), 3)  # 999 was not read
    folds = [Fold(str(i), np.setdiff1d(clips.samples, part), part) for i, part in enumerate(thirds)]
    result = audio_svm(clips, folds, strengths=[1.0])
    assert result.accuracy == pytest.approx(np.mean([one.predictions.accuracy for one in result.folds]))
    seen = np.concatenate([one.predictions.rows for one in result.folds])
    assert seen.tolist() == clips.samples.tolist()


def test_fit_that_stopped_early_says_so(monkeypatch, caplog):
    monkeypatch.setattr(svm_module, "MAX_ITERATIONS", 1)
    clips = _clips(spread=5.0)
    assert not audio_svm(clips, [_fold(clips)], strengths=[10.0]).folds[0].converged
    assert "test: C=10 did not converge in 1 iterations" in caplog.text


def _manifest(ids, splits):
    return Manifest.from_samples(
        [Sample(id=i, path=f"{i}.wav", split=s, has_audio=True) for i, s in zip(ids, splits, strict=True)],
        "/nowhere",
    )


def test_names_of_esc50_are_its_folds_whatever_the_splits_say():
    ids = [f"{fold}-100{fold}-{take}-0" for fold in range(1, 6) for take in "AB"]
    folds = folds_of(_manifest(ids, ["test" if i[0] == "3" else "train" for i in ids]))
    assert [fold.name for fold in folds] == [f"fold {i}" for i in range(1, 6)]
    assert [fold.test.tolist() for fold in folds] == [[2 * i, 2 * i + 1] for i in range(5)]
    assert [fold.validation.tolist() for fold in folds] == [[2, 3], [4, 5], [6, 7], [8, 9], [0, 1]]
    for fold in folds:
        assert sorted([*fold.train, *fold.test]) == list(range(10))


def test_splits_are_folds_or_train_and_test():
    folds = folds_of(_manifest("abcdef", ["fold1", "fold2", "fold10"] * 2))
    assert [fold.name for fold in folds] == ["fold 1", "fold 2", "fold 10"]
    assert folds[2].test.tolist() == [2, 5]
    (one,) = folds_of(_manifest("abcd", ["test", "train", "unused", "train"]))
    assert (one.train.tolist(), one.test.tolist(), one.validation) == ([1, 3], [0], None)
    (one,) = folds_of(_manifest("abcd", ["test", "val", "train", "train"]))
    assert (one.train.tolist(), one.validation.tolist()) == ([1, 2, 3], [1])


def test_what_does_not_fit_is_named():
    clips = _clips()
    with pytest.raises(EvaluationError, match=r"splits train; must be train and test, or fold1, fold2"):
        folds_of(_manifest("ab", ["train", "train"]))
    with pytest.raises(EvaluationError, match=r"fold x: 1 samples both train and test \(rows 2\)"):
        Fold("x", np.array([1, 2]), np.array([2, 3]))
    with pytest.raises(
        EvaluationError, match=r"fold x: 1 samples for validation are not in train \(rows 3\)"
    ):
        Fold("x", np.array([1, 2]), np.array([3]), np.array([3]))
    for wrong in ({"strengths": []}, {"strengths": [0.0]}, {"folds": []}):
        with pytest.raises(EvaluationError, match="must be strengths > 0 and at least one of each"):
            audio_svm(clips, **{"folds": [_fold(clips)], **wrong})
    with pytest.raises(EvaluationError, match="none of the 1 samples asked for is among those"):
        audio_svm(clips, [Fold("x", clips.samples, np.array([999]))])
    only = Fold("x", clips.samples[clips.sample_labels != "a"], clips.samples[clips.sample_labels == "a"])
    with pytest.raises(EvaluationError, match=r"1 classes of the test clips do not occur .* \(a\)"):
        audio_svm(clips, [only])
    features = np.array(clips.features)
    features[5, 0] = np.nan
    with pytest.raises(EvaluationError, match=r"hold NaN or infinity \(rows 2\)"):
        audio_svm(LabelledClips(features, clips.rows, clips.labels), [_fold(clips)])
