"""A run folder as `avssl demo` leaves it, with invented numbers and real clips."""

import json
import math

from media import write_media

LABELS = ("bell", "drum", "harp")
METRICS = ("linear_video", "linear_audio", "knn_video", "knn_audio", "a2v_r1", "a2v_r5", "a2v_r10")


def write_lines(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def metric_lines(steps, start):
    """Log of a stage: losses that fall, two norms, a rate."""
    return [
        {
            "step": step,
            "epoch": step // 100,
            "loss": start * math.exp(-step / 150) + 1,
            "loss_v2a": start * math.exp(-step / 150) + 1.1 + 0.1 * math.sin(step / 9),
            "loss_a2v": start * math.exp(-step / 150) + 0.9,
            "log_z": None if step < 20 else 3.2,
            "mean_norm_video": 0.9 * math.exp(-step / 100) + 0.1,
            "mean_norm_audio": 0.8 * math.exp(-step / 80) + 0.15,
            "lr": 1e-3 * (1 + math.cos(step / 130)) / 2,
            "clips_per_second": 40 + step % 7,
            "data_wait_share": 0.1 + 0.05 * math.sin(step / 30),
        }
        for step in range(10, steps + 1, 10)
    ]


def held_out_lines(steps):
    """What was measured on held out data, at steps that have a line already."""
    return [
        {
            "step": step,
            "epoch": step // 100,
            "held_out_knn_video": 0.5 - 0.4 * math.exp(-step / 200),
            "held_out_knn_audio": None if step == 100 else 0.7 - 0.5 * math.exp(-step / 150),
            "held_out_a2v_r1": 0.3 - 0.29 * math.exp(-step / 300),
            "held_out_v2a_r1": 0.25 - 0.24 * math.exp(-step / 300),
            "held_out_pool": 200.0,
            "held_out_skipped": 3.0,
        }
        for step in range(100, steps + 1, 100)
    ]


def cosine_histogram(centre):
    """A bell around `centre` in 40 bins on [-1, 1]."""
    edges = [i / 20 - 1 for i in range(41)]
    counts = [round(1000 * math.exp(-(((low + 0.025 - centre) / 0.2) ** 2))) for low in edges[:-1]]
    return {"edges": edges, "counts": counts, "mean": centre, "std": 0.14}


def mining_lines(labelled=True):
    """Three minings of positives that get better."""
    kinds = ("video", "audio", "consensus", "union", "used")
    return [
        {
            "step": 100 * time,
            "epoch": time,
            "num_positives": 8,
            "precision": {kind: 0.3 + 0.1 * time + 0.02 * n for n, kind in enumerate(kinds)}
            | {"chance": 0.08}
            if labelled
            else {},
            "precision_queries": 800 if labelled else 0,
            "kept_share": 0.6 + 0.1 * time if time else None,
            "jaccard": 0.5 + 0.1 * time if time else None,
            "in_degree": {"edges": [0, 1, 2, 4, 8], "counts": [80, 120, 2000, 200], "mean": 2.6, "std": 1.1},
            "never_chosen_share": 0.1 / 3,
            "largest_in_degree": 7,
            "gini": 0.31,
            "similarity": {
                f"{modality}_{pairs}": cosine_histogram(centre)
                for modality, shift in (("video", 0.0), ("audio", 0.1))
                for pairs, centre in (("positives", 0.6 - shift), ("random", shift))
            },
        }
        for time in range(3)
    ]


def run_record(stage, seconds):
    return {
        "manifest": {
            "rows": 803,
            "used": 800,
            "hash": "9f2ce17ab04d5566" * 4,
            "left_out": [
                {"path": "clips/mute.mp4", "stage": "audio", "reason": "no audio stream"},
                {"path": "clips/broken.mp4", "stage": "open", "reason": "invalid data"},
                {"path": "clips/torn.mp4", "stage": "open", "reason": "invalid data"},
            ],
        },
        "device": "cpu",
        "versions": {"avssl": "0.1.0", "torch": "2.11.0", "python": "3.11"},
        "command": f"avssl pretrain {stage}.yaml output=runs/demo/{stage}",
        "seconds": seconds,
    }


def results_record():
    rows = []
    for place, name in enumerate(("random init", "AVID", "AVID+CMA")):
        metrics = {metric: 0.1 + 0.2 * place + 0.01 * number for number, metric in enumerate(METRICS)}
        metrics |= {f"v2a_r{k}": 0.3 + 0.1 * place for k in (1, 5, 10)}
        metrics |= {"a2v_median_rank": 100.5 - 45 * place, "v2a_median_rank": 90.0 - 40 * place}
        rows.append({"name": name, "metrics": metrics | {"positive_precision": 0.6 if place == 2 else None}})
    return {
        "rows": rows,
        "pool_size": 200,
        "train_size": 600,
        "chance": {"linear": 1 / 12, "r1": 0.005, "r5": 0.025, "r10": 0.05, "positive_precision": 0.082},
        "command": "avssl evaluate runs/demo",
    }


def gallery_record():
    queries = []
    for number, label in enumerate(LABELS):
        matches = [
            {
                "id": f"clip-{other}",
                "label": LABELS[other],
                "media": f"media/{other}.mp4",
                "score": 0.9 - 0.2 * place,
                "is_self": other == number,
                "same_class": other == number,
            }
            for place, other in enumerate((number, (number + 1) % 3, (number + 2) % 3))
        ]
        query = {"id": f"clip-{number}", "path": f"clips/{number}.mp4", "label": label}
        queries.append(query | {"media": f"media/{number}.mp4", "matches": matches})
    titles = ("Audio to video (AVID+CMA)", "Video to audio (AVID+CMA)")
    return {"sections": [{"title": title, "queries": queries} for title in titles]}


def write_run(folder):
    """Two stages, results, a gallery of three clips and a configuration."""
    for stage, steps, start in (("avid", 600, 5.0), ("cma", 300, 3.0)):
        measured = held_out_lines(steps) if stage == "avid" else []
        write_lines(folder / stage / "metrics.jsonl", metric_lines(steps, start) + measured)
        (folder / stage / "run.json").write_text(json.dumps(run_record(stage, steps * 1.3)))
    skipped = {
        "id": "b1",
        "path": "clips/late.mp4",
        "stage": "video",
        "reason": "no frame decoded",
        "epoch": 2,
    }
    write_lines(folder / "avid" / "skipped.jsonl", [skipped])
    write_lines(folder / "cma" / "skipped.jsonl", [])
    write_lines(folder / "cma" / "mining.jsonl", mining_lines())
    (folder / "config.yaml").write_text("objective:\n  name: cma\n  positives: 32\noptim:\n  lr: 0.001\n")
    (folder / "results.json").write_text(json.dumps(results_record()))
    (folder / "gallery.json").write_text(json.dumps(gallery_record()))
    (folder / "media").mkdir()
    for number in range(len(LABELS)):
        path = folder / "media" / f"{number}.mp4"
        write_media(path, seconds=2.0, first_number=100 * number, tone_hz=330 + 110 * number)
    return folder
