"""Handwritten digits on 25 clients, of which five are malicious: any robust method against any attack.

shoal simulate examples/robust.py
shoal simulate examples/robust.py method=krum attack=alie
shoal simulate examples/robust.py method=fedavg attack=ipm attack_strength=8
"""

from shoal import Federated
from shoal.envs import datasets
from shoal.nets import models

job = Federated(
    models.mlp,
    datasets.digits,
    method="multikrum",
    clients=25,
    cohort=25,
    malicious=5,
    attack="ipm",
    attackers=5,
    strikes=0,
    partition="iid",
    rounds=30,
)
