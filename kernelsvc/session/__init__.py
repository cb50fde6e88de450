"""One session: a kernel, a log and a machine, held together. Called by ``service`` and nothing else."""

from kernelsvc.session.about import About, start_request_of
from kernelsvc.session.core import Session
from kernelsvc.session.ids import new_id, new_kernel_id

__all__ = ["About", "Session", "new_id", "new_kernel_id", "start_request_of"]
