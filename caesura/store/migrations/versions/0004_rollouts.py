"""Rollouts"""

from alembic import op
import sqlalchemy as sa

revision = '0004'
down_revision = '0003'


def upgrade() -> None:
    op.create_table('rollouts',
    sa.Column('seq', sa.BigInteger().with_variant(sa.Integer(), 'sqlite'), autoincrement=True, nullable=False),
    sa.Column('id', sa.String(length=64), nullable=False),
    sa.Column('job_id', sa.String(length=64), nullable=False),
    sa.Column('created_at', sa.BigInteger(), nullable=False),
    sa.Column('step', sa.Integer(), nullable=False),
    sa.Column('split', sa.String(length=8), nullable=False),
    sa.Column('data', sa.JSON(), nullable=False),
    sa.ForeignKeyConstraint(['job_id'], ['jobs.id'], ),
    sa.PrimaryKeyConstraint('seq'),
    sa.UniqueConstraint('id'),
    sqlite_autoincrement=True
    )
    op.create_index('rollouts_of_job', 'rollouts', ['job_id', 'seq'], unique=False)
    op.create_index('rollouts_of_step', 'rollouts', ['job_id', 'step', 'seq'], unique=False)
    op.create_index('rollouts_of_split', 'rollouts', ['job_id', 'split', 'seq'], unique=False)
    op.create_index('rollouts_of_step_and_split', 'rollouts', ['job_id', 'step', 'split', 'seq'], unique=False)
