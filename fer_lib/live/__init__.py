"""The live view: watch a run while it trains, steer it, and follow runs that train elsewhere.

    for block in watch(run): ...            in a notebook's training cell
    monitor("runs/quick")                   from another notebook: any run or study on disk
    view.update(step=..., loss=..., w=...)  in a training loop of your own, see View
"""

from fer_lib.live.monitor import monitor
from fer_lib.live.own_loop import View
from fer_lib.live.view import watch

__all__ = ["View", "monitor", "watch"]
