"""jupyter_kernel_test, through the Jupyter API: a kernel started by jupyter-kernel-client in place of a local one."""

import sys
import unittest

from jupyter_kernel_client.manager import KernelHttpManager
from jupyter_kernel_test import KernelTests


class Kernel(KernelTests):
    """Jupyter's tests of a kernel that implements all of its messages."""

    language_name = "python"
    file_extension = ".py"
    code_hello_world = "print('hello, world')"
    code_stderr = "import sys; print('no', file=sys.stderr)"
    completion_samples = [{"text": "enumer", "matches": {"enumerate"}}]
    complete_code_samples = ["x = 1", "for x in 'ab': print(x)\n\n"]
    incomplete_code_samples = ["for x in 'ab':", "'''text"]
    invalid_code_samples = ["1 +* 2"]
    code_page_something = "len?"
    code_generate_error = "{}['key']"
    code_execute_result = [{"code": "2 + 3", "result": "5"}, {"code": "sorted('ba')", "result": "['a', 'b']"}]
    code_display_data = [
        {"code": "from IPython.display import *; display(HTML('<i>x</i>'))", "mime": "text/html"},
        {"code": "display(Latex('$x$'))", "mime": "text/latex"},
    ]
    code_history_pattern = "2 ?*"
    supported_history_operations = ("tail", "search")
    code_inspect_sample = "len"
    code_clear_output = "from IPython.display import clear_output; clear_output()"

    @classmethod
    def setUpClass(cls) -> None:
        cls.km = KernelHttpManager(*sys.argv[1:3])
        cls.km.start_kernel(name="python3")
        cls.kc = cls.km.client
        cls.kc.start_channels()

    @classmethod
    def tearDownClass(cls) -> None:
        cls.km.shutdown_kernel()
        cls.kc.stop_channels()


result = unittest.TextTestRunner(sys.stderr).run(unittest.defaultTestLoader.loadTestsFromTestCase(Kernel))
assert (result.testsRun, result.wasSuccessful()) == (12, True)
assert [reason for _, reason in result.skipped] == ["History range not supported"], result.skipped
print("ok")
