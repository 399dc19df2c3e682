"""Two verbs on one run folder: the second is told who works there, and the run of the first is as if it were alone."""

import os
import socket

from llmnas.distributed.lock import FILE, locked


def test_a_verb_is_refused_while_another_process_works_in_the_folder(copied, llmnas):
    with locked(copied.folder):
        before = {path: path.stat().st_mtime_ns for path in copied.folder.rglob("*")}
        done = llmnas("train", copied.config, "--run-dir", copied.folder, "--resume")
        assert {path: path.stat().st_mtime_ns for path in copied.folder.rglob("*")} == before
    assert done.code == 2
    assert f"{copied.folder}: process {os.getpid()} on {socket.gethostname()} since " in done.complaint
    assert llmnas("train", copied.config, "--run-dir", copied.folder, "--resume").code == 0
    assert not (copied.folder / FILE).exists()
