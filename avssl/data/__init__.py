"""Which files there are, which stretch of each becomes a clip, and how clips reach the trainer."""

from avssl.data.batch import ClipBatch, PackedFrames, collate
from avssl.data.dataset import ClipDataset, ClipKey, EvalDataset, Failure
from avssl.data.ledger import SkipLedger
from avssl.data.loader import BatchKey, EpochSampler, RunSampler, make_loader, ordered_batches
from avssl.data.locality import ShardOrder
from avssl.data.manifest import Manifest
from avssl.data.measure import Skipped
from avssl.data.sampling import AudioSpec, VideoSpec, clip_windows, eval_windows
from avssl.data.scan import ScanResult, scan
from avssl.data.tables import Sample

__all__ = [
    "AudioSpec",
    "BatchKey",
    "ClipBatch",
    "ClipDataset",
    "ClipKey",
    "EpochSampler",
    "EvalDataset",
    "Failure",
    "Manifest",
    "PackedFrames",
    "RunSampler",
    "Sample",
    "ScanResult",
    "ShardOrder",
    "SkipLedger",
    "Skipped",
    "VideoSpec",
    "clip_windows",
    "collate",
    "eval_windows",
    "make_loader",
    "ordered_batches",
    "scan",
]
