"""Alignment: from a pretrained model to a chat model that people prefer (Llama 2, section 3).

rollout.py          answers to many dialogues at once, whole dialogues turn by turn
ghost_attention.py  an instruction of the first turn that holds for all

preferences.py      which of two answers is preferred: records, files, public sets
collect.py          preferences between a model's answers, by the miniature's annotator
reward_model.py     the Llama with a scalar head
reward.py           training it on preferences
scorer.py           its scores of many answers, and both models' combined
rejection.py        the best of K answers, learned
dpo_training.py     training on preferences without a reward model
distillation.py     answers under a safety preprompt, learned without it
red_team.py         attacks, and how often they succeed
ppo.py              PPO: the job; ppo_prompts.py, ppo_batch.py, ppo_trainer.py, ppo_log.py: its parts

Their losses are functions of arrays and know nothing of models:

masked.py           means over what is valid, shapes that must agree
ranking.py          reward models: the ranking loss with a margin by rating, the auxiliary safety loss
dpo.py              direct preference optimization, which needs no reward model
combine.py          two scores, safety and helpfulness, into one reward
advantages.py       rewards of tokens, KL estimators, generalized advantage estimation, whitening
policy.py           PPO's clipped losses of policy and value, and what is watched beside them

A loss returns (loss, saved), its backward pass takes
`saved` and returns the gradients of what the model has computed. Where a batch is taken in parts, `count` is what the
mean is over in the whole of it: losses and gradients of the parts then add up to those of the batch.
"""
