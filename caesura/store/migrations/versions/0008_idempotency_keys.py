"""Idempotency keys; indexes by which every page costs the same"""

from alembic import op
import sqlalchemy as sa

revision = '0008'
down_revision = '0007'

_BIG = sa.BigInteger().with_variant(sa.Integer(), 'sqlite')


def upgrade() -> None:
    op.create_table('idempotency_keys',
    sa.Column('seq', _BIG, autoincrement=True, nullable=False),
    sa.Column('project', sa.String(length=64), server_default='proj_default', nullable=False),
    sa.Column('key', sa.String(length=255), nullable=False),
    sa.Column('created_at', sa.BigInteger(), nullable=False),
    sa.Column('request', sa.Text(), nullable=False),
    sa.Column('written', sa.Boolean(), nullable=False),
    sa.Column('fingerprint', sa.String(length=64), nullable=True),
    sa.Column('status', sa.Integer(), nullable=True),
    sa.Column('headers', sa.JSON(none_as_null=True), nullable=True),
    sa.Column('body', sa.LargeBinary(), nullable=True),
    sa.PrimaryKeyConstraint('seq'),
    sa.UniqueConstraint('project', 'key'),
    sqlite_autoincrement=True
    )
    op.create_index('ix_idempotency_keys_created_at', 'idempotency_keys', ['created_at'], unique=False)
    op.create_table('job_metadata',
    sa.Column('job_seq', _BIG, nullable=False),
    sa.Column('key', sa.Text(), nullable=False),
    sa.Column('value', sa.Text(), nullable=False),
    sa.Column('project', sa.String(length=64), server_default='proj_default', nullable=False),
    sa.ForeignKeyConstraint(['job_seq'], ['jobs.seq'], ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('job_seq', 'key')
    )
    op.create_index('jobs_of_metadata', 'job_metadata', ['project', 'key', 'value', 'job_seq'], unique=False)
    _copy_metadata()
    _only('jobs_without_metadata', 'jobs', ['project', 'seq'], 'metadata IS NULL')
    _only('jobs_by_lease', 'jobs', ['lease_expires_at'], 'lease_expires_at IS NOT NULL')
    op.drop_index('files_of_project', 'files')
    _only('files_of_project', 'files', ['project', 'seq'], 'deleted_at IS NULL')
    _only('files_of_purpose', 'files', ['project', 'purpose', 'seq'], 'deleted_at IS NULL')
    op.drop_index('models_of_job', 'models')
    _only('models_of_job', 'models', ['job_id', 'step', 'seq'], 'deleted_at IS NULL')


def _only(name: str, table: str, columns: list[str], condition: str) -> None:
    where = sa.text(condition)
    op.create_index(name, table, columns, unique=False, sqlite_where=where, postgresql_where=where)


def _copy_metadata() -> None:
    """Of the jobs that there are."""
    jobs = sa.table('jobs', sa.column('seq', _BIG), sa.column('project', sa.String), sa.column('metadata', sa.JSON))
    pairs = sa.table(
        'job_metadata', sa.column('job_seq'), sa.column('key'), sa.column('value'), sa.column('project')
    )
    connection = op.get_bind()
    query = sa.select(jobs).where(jobs.c.metadata.is_not(None))
    rows = [
        {'job_seq': job.seq, 'key': key, 'value': value, 'project': job.project}
        for job in connection.execute(query)
        for key, value in (job.metadata or {}).items()
    ]
    if rows:
        connection.execute(sa.insert(pairs), rows)
