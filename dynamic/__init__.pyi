from dynamic.bundle import Bundle as Bundle
from dynamic.bundle import load as load
from dynamic.errors import DynamicError as DynamicError
from dynamic.errors import DynamicWarning as DynamicWarning
from dynamic.monitor import FixedMonitor as FixedMonitor
from dynamic.monitor import Monitor as Monitor
from dynamic.offline.building import build as build
from dynamic.offline.building import recertify as recertify
from dynamic.offline.calibration import calibrate as calibrate
from dynamic.offline.cascade import Cascade as Cascade
from dynamic.offline.fitting import fit as fit
from dynamic.offline.graphs import export as export
from dynamic.offline.wrapping import wrap as wrap
from dynamic.policies.budget import Budget as Budget
from dynamic.policies.certification import certify as certify
from dynamic.policies.costs import Costs as Costs
from dynamic.policies.frontier import Frontier as Frontier
from dynamic.policies.ladder import Ladder as Ladder
from dynamic.policies.ladder import Point as Point
from dynamic.policies.records import Records as Records
from dynamic.policies.snapshot import Snapshot as Snapshot
from dynamic.preprocessing import Preprocess as Preprocess
from dynamic.result import Result as Result
from dynamic.runtime import Runtime as Runtime

__version__: str
