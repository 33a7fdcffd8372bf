"""Problems: labelled data, an environment, or workers of a user's own. A problem knows no method of learning."""

from shoal.jobs.problems.calls import Calls as Calls
from shoal.jobs.problems.environment import Environment as Environment
from shoal.jobs.problems.problem import Evaluate as Evaluate
from shoal.jobs.problems.problem import Problem as Problem
from shoal.jobs.problems.supervised import Supervised as Supervised
