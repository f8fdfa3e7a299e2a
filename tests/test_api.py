"""No public name vanishes: what users import, write in configs and type."""

from importlib import import_module

import pytest
from tiny_runs import visionlab

NAMES = {
    "visionlab": "__version__ load_detector",
    "visionlab.ops": """
        RoIAlign batched_nms box_area box_iou clip_boxes_to_image nms nms_padded remove_small_boxes roi_align
        soft_nms
    """,
    "visionlab.structures": "Detections ImageBatch Target ViewBatch",
    "visionlab.distributed": """
        average barrier broadcast gather gather_objects is_main local_rank rank replicate start stop world_size
    """,
    "visionlab.seeding": "derive_seed",
    "visionlab.models.backbone": "Backbone Normalization",
    "visionlab.models.transfer": "TransferReport",
    "visionlab.models.weights": "load_weights read_backbone save_backbone",
    "visionlab.models.detector": "HEADS NECKS build_detector read_detector save_detector",
    "visionlab.models.two_stage_detector": "TwoStageDetector",
    "visionlab.models.rpn": "RPN",
    "visionlab.models.fpn": "FPN",
    "visionlab.models.vit_pyramid": "SimpleFeaturePyramid",
    "visionlab.models.neck": "Neck Pyramid",
    "visionlab.models.pool": "Pool PositionSensitivePool",
    "visionlab.models.pools": "POOLS Pool PSRoIAlignPool PSRoIMeanPool RoIAlignPool RoIMaxPool",
    "visionlab.models.deformable_pools": "DeformablePSRoIPool DeformableRoIPool",
    "visionlab.models.roi_head": "RoIHead",
    "visionlab.models.fast_rcnn_head": "FastRCNNHead",
    "visionlab.models.rfcn_head": "RFCNHead",
    "visionlab.models.sampling_places": "SamplingPlaces sampling_places",
    "visionlab.models.norm": "GroupNorm SyncBatchNorm",
    "visionlab.models.torchvision_weights": "build_from_torchvision from_torchvision to_torchvision",
    "visionlab.data.images": "ImageError read_image read_image_size",
    "visionlab.data.coco": "CocoDataset Record",
    "visionlab.data.folder": "ImageFolder",
    "visionlab.data.copies": "find_leaks group_photos",
    "visionlab.data.split": "split_part",
    "visionlab.data.annotated": "AnnotatedData AnnotatedPart",
    "visionlab.data.labelled": "LabelledData labelled_data",
    "visionlab.data.layouts": "LAYOUTS read_layout recognize",
    "visionlab.data.check": "CheckResult check_dataset check_folder",
    "visionlab.data.problems": "KINDS Policy Problem",
    "visionlab.data.synthetic": "draw_scene write_synthetic",
    "visionlab.data.transforms": "DetectionTransform EvaluationResize",
    "visionlab.data.views": "CenterCrop Views",
    "visionlab.data.class_folder": "ClassFolder",
    "visionlab.data.tiles": "Tiles",
    "visionlab.data.sampling": "Sampler",
    "visionlab.data.loader": "EvalLoader TrainLoader",
    "visionlab.data.samples": "DetectionSamples ViewSamples collate_images",
    "visionlab.train.loop": "train",
    "visionlab.train.task": "Task",
    "visionlab.train.optim": "OPTIMIZERS adamw sgd",
    "visionlab.train.schedule": "SCHEDULES constant cosine multistep",
    "visionlab.train.checkpoint": "Best Checkpoints",
    "visionlab.train.guard": "Interrupted NonFiniteError",
    "visionlab.train.ema": "WeightAverage",
    "visionlab.train.log": "Log",
    "visionlab.train.memory": "MemoryRise",
    "visionlab.train.momentum": "MomentumCopy",
    "visionlab.eval.coco_map": "CocoMetrics coco_metrics",
    "visionlab.eval.detection": "DetectionEvaluator to_results",
    "visionlab.eval.voc_ap": "VocMetrics voc_metrics",
    "visionlab.eval.interval": "Interval",
    "visionlab.eval.over_seeds": "best_arm count finished",
    "visionlab.eval.probe": "Features extract knn_predictions linear_predictions pool_levels probe",
    "visionlab.eval.roi_probe": "extract_rois roi_probe",
    "visionlab.eval.comparison": "write_comparison",
    "visionlab.eval.drawing": "draw_boxes draw_comparison draw_views",
    "visionlab.eval.offset_drawing": "draw_bins draw_offsets draw_taps",
    "visionlab.eval.several_views": "SeveralViews",
    "visionlab.eval.report": "write_report",
    "visionlab.eval.side_by_side": "write_side_by_side",
    "visionlab.pretext": """
        ContrastivePredictiveCoding DeepInfoMax InstanceDiscrimination Jigsaw MoCo PRETEXTS PatchPosition Pretext
        PretextOutput Rotation SimCLR VICReg
    """,
    "visionlab.pretext.losses": "contrast_with_queue noise_contrastive nt_xent vicreg_terms",
    "visionlab.pretext.estimators": "ESTIMATORS donsker_varadhan info_nce jensen_shannon nwj own_columns",
    "visionlab.pretext.permutations": "distant_permutations",
    "visionlab.pretext.memory_bank": "MemoryBank Queue",
    "visionlab.pretext.heads": "dense_projection projection_mlp queue_projection",
    "visionlab.pretext.collapse": "collapse_meters collapse_warnings effective_rank embedding_std",
    "visionlab.tasks.pretrain": "PretrainTask",
    "visionlab.tasks.detect": "DetectTask",
    "visionlab.tasks.classify": "ClassifyTask",
    "visionlab.studies.encoder_probes": "encoder_of probe_files probe_folder probe_rois",
    "visionlab.studies.compare": "Measures compare",
    "visionlab.studies.protocol": "base_run check_shared detector_run",
    "visionlab.inference": "Predictor load_detector",
    "visionlab.config.load": "ConfigError json_schema load show",
    "visionlab.config.shipped": "copy_configs shipped shipped_names",
    "visionlab.predict": "predict",
    "visionlab.run": "evaluate execute execute_all",
    "visionlab.studies.cells": "Cell CellStore Job",
    "visionlab.studies.ownership": "Ownership",
    "visionlab.studies.low_labels": "low_label_study",
    "visionlab.studies.quickstart": "quickstart",
    "visionlab.doctor": "examine",
    "visionlab.cli": "main",
}
CHOICES = {
    "visionlab.pretext.PRETEXTS": """
        cpc dim instance_discrimination jigsaw moco patch_position rotation simclr vicreg
    """,
    "visionlab.data.sources.PRETRAIN_DATA": "auto coco folder synthetic voc yolo",
    "visionlab.data.sources.DETECT_DATA": "auto coco synthetic voc yolo",
    "visionlab.models.detector.HEADS": "fast_rcnn res5 rfcn",
    "visionlab.models.detector.NECKS": "fpn simple_pyramid single_level",
    "visionlab.models.pools.POOLS": "deform_ps_roi_pool deform_roi_pool ps_roi_align ps_roi_pool roi_align roi_pool",
    "visionlab.train.optim.OPTIMIZERS": "adamw sgd",
    "visionlab.train.schedule.SCHEDULES": "constant cosine multistep",
}
COMMANDS = "check-data compare configs doctor evaluate predict probe quickstart report roi-probe study train"


@pytest.mark.parametrize("module", NAMES)
def test_names(module):
    found = import_module(module)
    assert [name for name in NAMES[module].split() if not hasattr(found, name)] == []


@pytest.mark.parametrize("table", CHOICES)
def test_choices_in_configs(table):
    module, name = table.rsplit(".", 1)
    found = getattr(import_module(module), name)
    assert [choice for choice in CHOICES[table].split() if choice not in found] == []


@pytest.mark.parametrize("command", COMMANDS.split())
def test_commands(command, capsys):
    with pytest.raises(SystemExit) as stop:
        visionlab(command, "--help")
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: visionlab {command}")
