# Written by tools/write_stubs.py: make stubs
from steprule import arrays as arrays
from steprule import catalog as catalog
from steprule import check as check
from steprule import compare as compare
from steprule import functional as functional
from steprule import layers as layers
from steprule import memory as memory
from steprule import optimizer as optimizer
from steprule import pieces as pieces
from steprule import rules as rules
from steprule import services as services
from steprule import transforms as transforms
from steprule import wrappers as wrappers
from steprule.optimizer import Optimizer as Optimizer
from steprule.optimizer import LBFGS as LBFGS
from steprule.optimizer import Adagrad as Adagrad
from steprule.optimizer import Adadelta as Adadelta
from steprule.optimizer import Rprop as Rprop
from steprule.optimizer import AdamW as AdamW
from steprule.optimizer import Adam as Adam
from steprule.optimizer import NAdam as NAdam
from steprule.optimizer import RAdam as RAdam
from steprule.optimizer import Adamax as Adamax
from steprule.optimizer import SparseAdam as SparseAdam
from steprule.optimizer import Adafactor as Adafactor
from steprule.optimizer import Muon as Muon
from steprule.optimizer import RMSprop as RMSprop
from steprule.optimizer import SGD as SGD
from steprule.optimizer import ASGD as ASGD
from steprule.optimizer import MADGRAD as MADGRAD
from steprule.optimizer import AdamC as AdamC
from steprule.optimizer import AdaBelief as AdaBelief
from steprule.optimizer import Yogi as Yogi
from steprule.optimizer import LaProp as LaProp
from steprule.optimizer import ADOPT as ADOPT
from steprule.optimizer import AdEMAMix as AdEMAMix
from steprule.optimizer import Adan as Adan
from steprule.optimizer import StableAdamW as StableAdamW
from steprule.optimizer import AdamAtan2 as AdamAtan2
from steprule.optimizer import MARS as MARS
from steprule.optimizer import Grams as Grams
from steprule.optimizer import CAME as CAME
from steprule.optimizer import AdamMini as AdamMini
from steprule.optimizer import SM3 as SM3
from steprule.optimizer import SOAP as SOAP
from steprule.optimizer import Shampoo as Shampoo
from steprule.optimizer import ASGO as ASGO
from steprule.optimizer import KLShampoo as KLShampoo
from steprule.optimizer import KLSOAP as KLSOAP
from steprule.optimizer import SPlus as SPlus
from steprule.optimizer import PSGDKron as PSGDKron
from steprule.optimizer import LARS as LARS
from steprule.optimizer import LAMB as LAMB
from steprule.optimizer import NovoGrad as NovoGrad
from steprule.optimizer import NorMuon as NorMuon
from steprule.optimizer import AdaMuon as AdaMuon
from steprule.optimizer import MuonEq as MuonEq
from steprule.optimizer import MUD as MUD
from steprule.optimizer import PolarGrad as PolarGrad
from steprule.optimizer import Dion2 as Dion2
from steprule.optimizer import Mano as Mano
from steprule.optimizer import Scion as Scion
from steprule.optimizer import Prodigy as Prodigy
from steprule.optimizer import DAdaptAdam as DAdaptAdam
from steprule.optimizer import DoG as DoG
from steprule.optimizer import ScheduleFreeSGD as ScheduleFreeSGD
from steprule.optimizer import ScheduleFreeAdamW as ScheduleFreeAdamW
from steprule.optimizer import ScheduleFreeRAdam as ScheduleFreeRAdam
from steprule.optimizer import Signum as Signum
from steprule.optimizer import Lion as Lion
from steprule.pieces import at_first as at_first
from steprule.pieces import atan2 as atan2
from steprule.pieces import cbrt as cbrt
from steprule.pieces import clip as clip
from steprule.pieces import col_largest as col_largest
from steprule.pieces import col_mean as col_mean
from steprule.pieces import col_total as col_total
from steprule.pieces import cols as cols
from steprule.pieces import debias as debias
from steprule.pieces import debiased_beta as debiased_beta
from steprule.pieces import decorrelate as decorrelate
from steprule.pieces import eigenbasis as eigenbasis
from steprule.pieces import ema as ema
from steprule.pieces import ema_sq as ema_sq
from steprule.pieces import every as every
from steprule.pieces import exp as exp
from steprule.pieces import floor as floor
from steprule.pieces import gram as gram
from steprule.pieces import inverse_root as inverse_root
from steprule.pieces import l2 as l2
from steprule.pieces import largest_eigenvalue as largest_eigenvalue
from steprule.pieces import log as log
from steprule.pieces import matmul as matmul
from steprule.pieces import maximum as maximum
from steprule.pieces import mean as mean
from steprule.pieces import minimum as minimum
from steprule.pieces import norm as norm
from steprule.pieces import polar as polar
from steprule.pieces import row_largest as row_largest
from steprule.pieces import row_mean as row_mean
from steprule.pieces import row_total as row_total
from steprule.pieces import rows as rows
from steprule.pieces import running_ema as running_ema
from steprule.pieces import sign as sign
from steprule.pieces import size as size
from steprule.pieces import sqrt as sqrt
from steprule.pieces import top_share as top_share
from steprule.pieces import total as total
from steprule.pieces import total_of_all as total_of_all
from steprule.pieces import transpose as transpose
from steprule.pieces import where as where
from steprule.chains import chain as chain
from steprule.wrapping import wrap as wrap
from steprule.create import create_optimizer as create_optimizer
from steprule.create import parameter_groups as parameter_groups
from steprule.layers import roles as roles
from steprule.scaling import transfer as transfer
from steprule.coordinates import coordinate_check as coordinate_check
from steprule.together import Together as Together
from steprule.rule import Hyperparameter as Hyperparameter
from steprule.rule import Rule as Rule
from steprule.rule import RuleError as RuleError
from steprule.rule import State as State

__all__ = [
    "ADOPT",
    "ASGD",
    "ASGO",
    "AdEMAMix",
    "AdaBelief",
    "AdaMuon",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamAtan2",
    "AdamC",
    "AdamMini",
    "AdamW",
    "Adamax",
    "Adan",
    "CAME",
    "DAdaptAdam",
    "Dion2",
    "DoG",
    "Grams",
    "Hyperparameter",
    "KLSOAP",
    "KLShampoo",
    "LAMB",
    "LARS",
    "LBFGS",
    "LaProp",
    "Lion",
    "MADGRAD",
    "MARS",
    "MUD",
    "Mano",
    "Muon",
    "MuonEq",
    "NAdam",
    "NorMuon",
    "NovoGrad",
    "Optimizer",
    "PSGDKron",
    "PolarGrad",
    "Prodigy",
    "RAdam",
    "RMSprop",
    "Rprop",
    "Rule",
    "RuleError",
    "SGD",
    "SM3",
    "SOAP",
    "SPlus",
    "ScheduleFreeAdamW",
    "ScheduleFreeRAdam",
    "ScheduleFreeSGD",
    "Scion",
    "Shampoo",
    "Signum",
    "SparseAdam",
    "StableAdamW",
    "State",
    "Together",
    "Yogi",
    "at_first",
    "atan2",
    "cbrt",
    "chain",
    "clip",
    "col_largest",
    "col_mean",
    "col_total",
    "cols",
    "coordinate_check",
    "create_optimizer",
    "debias",
    "debiased_beta",
    "decorrelate",
    "eigenbasis",
    "ema",
    "ema_sq",
    "every",
    "exp",
    "floor",
    "gram",
    "inverse_root",
    "l2",
    "largest_eigenvalue",
    "log",
    "matmul",
    "maximum",
    "mean",
    "minimum",
    "norm",
    "parameter_groups",
    "polar",
    "roles",
    "row_largest",
    "row_mean",
    "row_total",
    "rows",
    "running_ema",
    "sign",
    "size",
    "sqrt",
    "top_share",
    "total",
    "total_of_all",
    "transfer",
    "transpose",
    "where",
    "wrap",
]

__version__: str
