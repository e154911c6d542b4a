"""The installed ipykernel, which all notebooks run on."""

import queue
import time

import pytest
from conftest import started
from jupyter_client.manager import start_new_kernel

# each pass of the kernel's loop for requests and replies takes 20 ms, as on a machine that is busy
BUSY = """import time
loop = get_ipython().kernel.shell_channel_thread.io_loop
def go_on():
    time.sleep(.02)
    loop.add_callback(go_on)
loop.add_callback(go_on)"""


def test_a_request_that_comes_while_another_is_answered_is_answered_too():
    """ipykernel 7.0 to 7.3 can overlook it, and all that come after it, until a client connects anew (ipykernel#1554):
    a page that was loaded anew shows "Loading widget..." for ever.
    """
    manager, client = started(start_new_kernel)()
    try:
        client.execute(BUSY, reply=True, timeout=60)
        for k in range(40):
            asked = {client.kernel_info()}
            time.sleep(.004 * k)
            asked.add(client.kernel_info())
            while asked:
                asked.discard(client.get_shell_msg(timeout=10)["parent_header"]["msg_id"])
    except queue.Empty:
        pytest.fail(f"a request {4 * k} ms after another was not answered")
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
