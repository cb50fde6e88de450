"""One session: a kernel, a log and a state machine. Only ``service`` uses it."""

from kernelsvc.session.kernel_requests import new_kernel_id, new_session_id
from kernelsvc.session.session import Session
from kernelsvc.session.spec import SessionSpec, start_request_of

__all__ = ["Session", "SessionSpec", "new_kernel_id", "new_session_id", "start_request_of"]
