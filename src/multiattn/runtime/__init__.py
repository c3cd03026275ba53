"""The machine, as every package above needs it.

Torch is imported inside the functions that need it, so stages without a network start at once.

    layout.py        names of the files and folders that runs, faces and submissions consist of
    files.py         atomic writes, JSON, digests, locks
    table_files.py   CSV cells as text, parquet piece by piece
    tensor_files.py  state dicts from files, without running what those hold
    paths.py         faults of paths that tables bring
    journal.py       finished work, line by line, that survives being cut
    text_tables.py   Markdown and terminal tables
    progress.py      log lines and progress bars
    signals.py       signals that ask a process to end
    devices.py       the device, the context of a precision, seeds
    processor.py     idle threads, denormal numbers, the allocator, memory in use, time since the start
    environment.py   versions, commit and machine of this process
"""
