"""Crops in memory are those that extraction writes, byte by byte."""

import dataclasses

import pytest

from multiattn.video.crops.images import decode_crop, read_crop
from multiattn.video.crops.recipe import CropRecipe
from multiattn.video.extraction import in_memory
from multiattn.video.extraction.extract import ExtractionSettings, VideoTask, extract_video
from multiattn.video.extraction.in_memory import encode_crops

SETTINGS = ExtractionSettings(recipe=CropRecipe(num_frames=4, size=64))


def test_they_are_the_crops_that_extraction_writes(small_dataset, tmp_path):
    statuses = set()
    for path in sorted((small_dataset / "test_videos").iterdir()):
        task = VideoTask(video_id=f"folder/{path.stem}", path=path)
        written, kept = extract_video(task, tmp_path, SETTINGS), encode_crops(task, SETTINGS)
        statuses.add(kept.status)
        assert (kept.status, kept.num_frames, kept.message) == (written.status, written.num_frames, written.message)
        assert [(row[1], row[3]) for row in written.rows] == [(crop.frame_index, crop.track) for crop in kept.crops]
        for row, crop in zip(written.rows, kept.crops, strict=True):
            assert (tmp_path / row[4]).read_bytes() == crop.jpeg
            assert (read_crop(tmp_path / row[4], 32) == decode_crop(crop.jpeg, 32, "here")).all()
        assert kept.search_seconds >= 0 and (kept.decode_seconds > 0 or kept.status == "unreadable")
    assert statuses == {"ok", "no_face", "unreadable"}


def test_without_memory_on_the_gpu_faces_are_detected_on_the_cpu(small_dataset, monkeypatch):
    task = VideoTask(video_id="folder/x", path=min((small_dataset / "test_videos").iterdir()))
    find, devices = in_memory.find_crops, []

    def short_of_memory(task, settings, **options):
        devices.append(settings.device)
        if settings.device == "cuda":
            raise RuntimeError("CUDA error: out of memory")
        return find(task, settings, **options)

    monkeypatch.setattr(in_memory, "find_crops", short_of_memory)
    assert encode_crops(task, dataclasses.replace(SETTINGS, device="cuda")).crops == encode_crops(task, SETTINGS).crops
    assert devices == ["cuda", "cpu", "cpu"]


def test_an_error_of_a_crop_names_where_it_came_from():
    with pytest.raises(ValueError, match="video x, frame 3: not a readable image"):
        decode_crop(b"", 32, "video x, frame 3")
