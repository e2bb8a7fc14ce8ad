"""Small networks that, together, exercise every rule of the tracer."""

import coverage_blocks as coverage_blocks
import coverage_elementwise as coverage_elementwise
import coverage_index as coverage_index
import coverage_linear as coverage_linear
from coverage_table import TABLE as TABLE
from coverage_table import Covering as Covering
from coverage_table import primitives as primitives
