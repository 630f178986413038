// What a job's steps measured, as columns; and which of them stand in one chart.

/** The charts, in their order: a chart's lines are those of its measures that the job has. */
const CHARTS = [
  {
    id: "loss",
    title: "Loss",
    measures: { train_loss: "training", valid_loss: "validation", full_valid_loss: "full validation" },
  },
  {
    id: "accuracy",
    title: "Token accuracy",
    measures: {
      train_mean_token_accuracy: "training",
      valid_mean_token_accuracy: "validation",
      full_valid_mean_token_accuracy: "full validation",
    },
  },
  {
    id: "reward",
    title: "Mean reward",
    measures: { train_reward_mean: "training", valid_reward_mean: "full validation" },
  },
  {
    id: "preferred",
    title: "Reward accuracy",
    measures: {
      train_reward_accuracy: "training",
      valid_reward_accuracy: "validation",
      full_valid_reward_accuracy: "full validation",
    },
  },
  {
    id: "margin",
    title: "Reward margin",
    measures: {
      train_reward_margin: "training",
      valid_reward_margin: "validation",
      full_valid_reward_margin: "full validation",
    },
  },
  {
    id: "sides",
    title: "Rewards of both answers",
    measures: { train_reward_chosen: "preferred", train_reward_rejected: "other" },
  },
  {
    id: "tokens",
    title: "Tokens of an answer",
    measures: { completion_tokens_mean: "training", valid_completion_tokens_mean: "full validation" },
  },
  {
    id: "shares",
    title: "Shares of answers and groups",
    measures: {
      mean_unresponsive_rewards: "answers cut off or empty",
      groups_without_spread_share: "groups without spread",
    },
  },
  { id: "rate", title: "Learning rate", measures: { learning_rate: "learning rate" } },
  { id: "speed", title: "Tokens per second", measures: { tokens_per_second: "tokens/s" } },
];
const GRADERS = { id: "graders", title: "Reward by grader" };

/** The steps of one job, in order. */
export class Steps {
  constructor() {
    this.steps = [];
    /** Measure → its value at each step; null where it was not measured. */
    this.columns = new Map();
    this.total = null;
    /** Measure of a grader → its name. */
    this.graders = {};
  }

  get last() {
    return this.steps.at(-1) ?? 0;
  }

  /** Takes what a metric event says. Returns whether it was news. */
  add(data) {
    if (typeof data.step !== "number" || data.step <= this.last) return false;
    this.steps.push(data.step);
    this.total = data.total_steps ?? this.total;
    const values = { ...data, ...this.gradersOf(data) };
    for (const [name, value] of Object.entries(values)) {
      if (typeof value !== "number" || name === "step" || name === "total_steps") continue;
      if (!this.columns.has(name)) this.columns.set(name, new Array(this.steps.length - 1).fill(null));
      this.columns.get(name).push(value);
    }
    for (const column of this.columns.values()) if (column.length < this.steps.length) column.push(null);
    return true;
  }

  /** Each grader's mean reward, under a name of its own. */
  gradersOf(data) {
    const found = {};
    for (const { name, train_reward_mean, valid_reward_mean } of data.scores?.graders ?? []) {
      for (const [kind, value] of [
        ["training", train_reward_mean],
        ["full validation", valid_reward_mean],
      ]) {
        const measure = `grader:${kind}:${name}`;
        this.graders[measure] = `${name}, ${kind}`;
        found[measure] = value;
      }
    }
    return found;
  }
}

/** The charts that any of the jobs has lines for. */
export function chartsOf(all) {
  const graders = Object.assign({}, ...all.map((steps) => steps.graders));
  const known = [...CHARTS];
  known.splice(3, 0, { ...GRADERS, measures: graders });
  return known
    .map((chart) => ({
      ...chart,
      measures: Object.fromEntries(
        Object.entries(chart.measures).filter(([name]) => all.some((steps) => steps.columns.has(name))),
      ),
    }))
    .filter((chart) => Object.keys(chart.measures).length);
}

/**
 * An exponential mean that does not lean towards its beginning: `weight`, 0 to below 1, is what stays of the past at
 * each measured step. Gaps stay gaps.
 */
export function smooth(values, weight) {
  if (!weight) return values;
  let mean = 0;
  let scale = 0;
  return values.map((value) => {
    if (value === null || value === undefined) return value;
    mean = weight * mean + (1 - weight) * value;
    scale = weight * scale + (1 - weight);
    return mean / scale;
  });
}
